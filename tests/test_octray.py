"""The public API: every name is there, documented and cheap to import, and every command does what its function does."""

import ast
import importlib
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import octray
from pipeline.cli.main import main
from tests.builders import make_bundle, make_dicom
from tests.conftest import Trained

ROOT = Path(__file__).parents[1]


def test_imports_for_type_checkers_and_the_table_of_modules_say_the_same() -> None:
    tree = ast.parse((ROOT / "octray" / "__init__.py").read_text())
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module not in ("importlib", "typing")
    ]
    assert {name.name: node.module for node in imports for name in node.names} == octray._MODULES
    assert [*octray._MODULES] == octray.__all__ == sorted(octray.__all__)
    assert {*octray.__all__} <= {*dir(octray)}


@pytest.mark.parametrize("name", octray.__all__)
def test_every_name_is_found_and_documented(name: str) -> None:
    value = getattr(octray, name)
    assert value is getattr(importlib.import_module(octray._MODULES[name]), name)
    assert len(value.__doc__) > 20
    assert re.search(rf"`{name}\b", (ROOT / "docs" / "python.md").read_text())


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'octray' has no attribute 'diagnose'"):
        octray.diagnose  # noqa: B018


def test_the_package_imports_nothing_until_a_name_is_used() -> None:
    code = "import sys, octray; print(*(name for name in sys.modules if name.partition('.')[0] in ('pipeline', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.dcm").write_bytes(make_dicom(np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5)))
    (tmp_path / "b.dcm").write_text("no image")
    assert main(["inspect", str(tmp_path), "--json"]) == 1
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert json.loads(json.dumps([*octray.describe_files([str(tmp_path)])])) == printed
    frames = [octray.describe_frame(frame) for frame in octray.read_frames(str(tmp_path / "a.dcm"))]
    assert json.loads(json.dumps(frames)) == printed[:2]
    with pytest.raises(octray.UnreadableError, match="neither DICOM"):
        list(octray.read_frames(tmp_path / "b.dcm"))


def test_phantom_ingest_train_and_evaluate(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    octray.write_phantom(str(tmp_path), studies=40, seed=4)
    assert (tmp_path / "labels.csv").read_bytes() == (trained.studies.parent / "labels.csv").read_bytes()
    percent = (40, 20, 20, 20)
    labels = str(trained.studies.parent / "labels.csv")
    index, _ = octray.build_index([str(trained.studies)], tmp_path / "index", labels=labels, percent=percent)
    assert index.sha256 == octray.load_index(str(trained.index)).sha256
    config = octray.load_config(trained.config, ["tracking.enabled=false"])
    bundle = octray.train(config, index, str(tmp_path / "bundle"))
    assert bundle.read("weights.safetensors") == octray.load_bundle(str(trained.bundle)).read("weights.safetensors")
    assert main(["evaluate", str(trained.bundle), "--index", str(trained.index), "--split", "tune", "--json"]) == 0
    figures = octray.evaluate_bundle(bundle, index, split="tune").to_json()
    assert json.loads(json.dumps(figures)) == json.loads(capsys.readouterr().out)


def test_deidentify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(make_dicom(PatientName="Doe^Jane", PatientID="4711", StudyDate="20200101"))
    (tmp_path / "in" / "b.txt").write_text("no image")
    key, words = tmp_path / "my.key", ["--keep", "dates", "--blank", "0,0,4,2"]
    assert main(["deidentify", str(tmp_path / "in"), "--out", str(tmp_path / "one"), "--key", str(key), *words]) == 1
    plan = octray.plan_deidentification(str(tmp_path / "two"), key=str(key), keep=["dates"], blank=[(0, 0, 4, 2)])
    result = octray.deidentify_folder([str(tmp_path / "in")], plan)
    (name,) = result.names
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert [file.reason for file in result.refused] == ["not_dicom"]
    capsys.readouterr()
    assert main(["deidentify", "--show-crosswalk", "--key", str(key)]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [*octray.show_crosswalk(str(key))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ["names"]}, "nothing called names to keep. Name some of dates, uids, patient, descriptors"),
        ({"blank": [(0, 0, 5, 0)]}, "The rectangle 0,0,5,0 must be"),
        ({"allow": [("abc", "Rows")]}, "abc:Rows must be SHA256:ATTRIBUTE"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(octray.InputError, match=message):
        octray.plan_deidentification(tmp_path, **options)


def test_frames_predictions_and_heatmaps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "a.dcm").write_bytes(make_dicom(rng.integers(0, 4000, (300, 260), np.uint16)))
    bundle = make_bundle(tmp_path / "bundle")
    (frame,) = octray.read_frames(tmp_path / "a.dcm")
    (result,) = octray.Predictor(bundle).predict([frame])
    picture = octray.draw_heatmap(frame, result.heatmaps[0], bundle.manifest)
    assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
    assert picture.shape[1] > 2 * 260


def test_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for study in ("1", "2"):
        (tmp_path / "in" / study).mkdir(parents=True)
        pixels = rng.integers(0, 4000, (300, 260), np.uint16)
        (tmp_path / "in" / study / "a.dcm").write_bytes(make_dicom(pixels, StudyInstanceUID=f"1.2.{study}"))
    (tmp_path / "in" / "b.txt").write_text("no image")
    bundle = make_bundle(tmp_path / "bundle")
    words = [str(tmp_path / "in"), "--bundle", str(bundle.path), "--out", str(tmp_path / "one"), "--dicom", "sr"]
    assert main(["score", *words]) == 1
    job = octray.score_folder(str(tmp_path / "in"), bundle, str(tmp_path / "two"), objects=["sr"])
    assert (job.totals.frames, job.totals.failures, job.scored, job.faults, job.interrupted) == (2, 1, 3, [], False)
    one, two = ({path.relative_to(top) for path in top.rglob("*")} for top in (tmp_path / "one", tmp_path / "two"))
    assert one == two
    for path in sorted(one):
        if path.suffix in (".csv", ".jpg"):
            assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    *frames, record = octray.score_study(octray.discover(tmp_path / "in" / "1"), octray.Predictor(bundle))
    assert record.study_instance_uid == "1.2.1"
    assert [frame.predictions for frame in frames] == [frame.predictions for frame in record.frames]
    row = (tmp_path / "one" / "predictions.csv").read_text().splitlines()[1]
    assert f"{frames[0].predictions[0].probability:.4f}" in row


def test_a_folder_is_scored_in_another_thread_than_the_main_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(make_dicom(np.arange(300 * 260, dtype=np.uint16).reshape(300, 260)))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(octray.score_folder, tmp_path / "in", make_bundle(tmp_path / "bundle"), tmp_path / "out").result()
    assert job.totals.frames == 1


@pytest.mark.parametrize("options", [{"objects": ["pdf"]}, {"identity": ["names"]}])
def test_an_argument_that_there_is_not_is_refused(options: dict[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (name,), (value,) = options, options.values()
    with pytest.raises(octray.ConfigError, match=f"{name}: there is no {value[0]}. Name some of "):
        octray.score_folder(tmp_path / "in", make_bundle(tmp_path / "bundle"), tmp_path / "out", **options)


def test_lists_and_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "describe", "resnet18", "--size", "64"]) == 0
    found = octray.describe_architecture("resnet18", 64)
    printed = capsys.readouterr().out
    assert f"parameters: {found.parameters:,}\n" in printed
    assert "feature maps: 64 -> 32 -> 16 -> 8 -> 4 -> 2\n" in printed
    assert "conv1  " in printed
    assert "(64 + 6 - 7) // 2 + 1 = 32" in printed
    assert main(["models", "describe", "resnet18", "--size", "0"]) == 2
    assert "octray: The size must be a positive number of pixels. Got 0 instead.\n" in capsys.readouterr().err
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = octray.list_networks()
    assert [line.split()[0] for line in lines[1 : len(listed) + 1]] == [network.name for network in listed]
    families = [f"{family}: {' '.join(names)}" for family, names in octray.list_architectures().items()]
    assert lines[-len(families) :] == families
    assert main(["data", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [card.name for card in octray.list_datasets()]

"""Bundles: whole or refused."""

import json
from pathlib import Path

import pytest

from pipeline.errors import BundleError
from pipeline.model.bundle import GRAPH, MANIFEST, MODEL_CARD, Manifest, load_bundle, write_bundle
from pipeline.settings import Check, Policy
from tests.builders import make_bundle, make_gate

WRITTEN_BY_BUNDLE = {"schema_version", "bundle_id", "files"}


def edit_manifest(path: Path, **values: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    (path / MANIFEST).write_text(json.dumps(manifest | values), encoding="utf-8")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = make_bundle(tmp_path / "bundle")
    read = load_bundle(tmp_path / "bundle")
    assert read.manifest == written.manifest
    assert read.read(MODEL_CARD) == b"# Tiny model\n"


def test_the_identity_covers_calibration_as_well_as_files(tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "a")
    assert make_bundle(tmp_path / "b").manifest.bundle_id == first.manifest.bundle_id
    assert make_bundle(tmp_path / "c", temperature=2.0).manifest.bundle_id != first.manifest.bundle_id


def test_one_changed_byte_is_found(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle").path
    content = bytearray((path / GRAPH).read_bytes())
    content[len(content) // 2] ^= 1
    (path / GRAPH).write_bytes(content)
    with pytest.raises(BundleError, match="The file model.onnx of bundle bundle does not match its hash"):
        load_bundle(path)


def test_a_file_that_changes_after_loading_is_found(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (bundle.path / MODEL_CARD).write_text("other", encoding="utf-8")
    with pytest.raises(BundleError, match="does not match its hash"):
        bundle.read(MODEL_CARD)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle").path
    (path / GRAPH).unlink()
    with pytest.raises(BundleError, match="The file model.onnx of bundle bundle cannot be read"):
        load_bundle(path)


@pytest.mark.parametrize("schema", [4, 99])
def test_another_schema_is_refused(tmp_path: Path, schema: int) -> None:
    path = make_bundle(tmp_path / "bundle").path
    edit_manifest(path, schema_version=schema)
    with pytest.raises(BundleError, match=f"schema version {schema}; this octray reads 5"):
        load_bundle(path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"calibration": "warm"}, "is not valid in: calibration"),
        ({"calibration": {"temperatures": [3.0, 3.0], "offsets": [0.0, 0.0]}}, "does not describe a whole bundle"),
        ({"files": {"../outside": "0" * 64}}, "does not describe a whole bundle"),
    ],
)
def test_an_altered_manifest_is_refused(tmp_path: Path, values: dict[str, object], expected: str) -> None:
    path = make_bundle(tmp_path / "bundle").path
    edit_manifest(path, **values)
    with pytest.raises(BundleError, match=expected):
        load_bundle(path)


def test_a_bundle_without_a_scale_of_its_heatmaps_is_refused(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle").path
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    del manifest["heatmap"]["full_scale"]
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match=r"is not valid in: heatmap\.full_scale\. Train the bundle again\."):
        load_bundle(path)


def test_the_gate_is_read_back(tmp_path: Path) -> None:
    policies = dict.fromkeys(Check, Policy.IGNORE)
    gate = make_gate(policies, 99, modalities=("OPT",), body_parts=("EYE",))
    make_bundle(tmp_path / "bundle", quality=gate.quality, intended_use=gate.intended_use)
    assert load_bundle(tmp_path / "bundle").manifest.gate() == gate


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    path = make_bundle(tmp_path / "bundle").path
    (path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match="is damaged"):
        load_bundle(path)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        load_bundle(tmp_path / "absent")


def test_a_file_that_is_not_part_of_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no file secret.txt"):
        make_bundle(tmp_path / "bundle").read("secret.txt")


def test_a_bundle_without_its_graph_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="A bundle needs"):
        write_bundle(tmp_path / "bundle", {MODEL_CARD: b""})
    assert not (tmp_path / "bundle").exists()


def test_a_new_bundle_takes_the_place_of_an_older_one_with_more_files(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    first = make_bundle(path)
    contents = {name: first.read(name) for name in first.manifest.files}
    fields = {name: getattr(first.manifest, name) for name in Manifest.model_fields if name not in WRITTEN_BY_BUNDLE}
    write_bundle(path, contents | {"plots/roc.png": b"png"}, **fields)
    (path / "notes.txt").write_text("mine", encoding="utf-8")
    make_bundle(path)
    assert not (path / "plots" / "roc.png").exists()
    assert (path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert load_bundle(path).manifest.files == first.manifest.files

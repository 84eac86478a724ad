"""Scoring on a Ray cluster of two nodes: the same bytes as here, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.model.bundle import Bundle
from tests.builders import make_bundle, make_dicom
from tests.server_ray import RayCluster, running_ray
from tests.test_cli_score import contents

COUNT = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    pytest.importorskip("ray", reason="Ray is not here: pip install 'octray[cluster]'")
    with running_ray(2) as cluster:
        yield cluster


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    root = tmp_path / "studies"
    root.mkdir()
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 4000, (40, 50), np.uint16)
        uids = {"StudyInstanceUID": f"1.2.{number}", "SOPInstanceUID": f"1.2.{number}.1"}
        (root / f"{number:03}.dcm").write_bytes(make_dicom(pixels, **uids))
    (root / "text.dcm").write_text("not DICOM")
    return root


def arguments(studies: Path, bundle: Bundle, out: Path, *more: str) -> list[str]:
    return ["score", str(studies), "--bundle", str(bundle.path), "--out", str(out), *more]


def actors(cluster: RayCluster) -> list[int]:
    """Return the processes of this cluster that score."""
    found = []
    for place in Path("/proc").iterdir():
        if not place.name.isdecimal():
            continue
        try:
            title, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::_Actor") and cluster.environment["RAY_AUTH_TOKEN"].encode() in environment:
            found.append(int(place.name))
    return found


@pytest.mark.slow
def test_killed_actors_lose_nothing_and_double_nothing(
    cluster: RayCluster, studies: Path, bundle: Bundle, tmp_path: Path
) -> None:
    assert main(arguments(studies, bundle, tmp_path / "here")) == 1
    there = arguments(studies, bundle, tmp_path / "there", "--json", "--engine", "ray", "--address", cluster.address)
    command = [sys.executable, "-m", "pipeline.cli.main", *there]
    with subprocess.Popen(
        command, env=os.environ | cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        scoring = actors(cluster)
        assert len(scoring) == 2
        for number in scoring:
            os.kill(number, signal.SIGKILL)
            time.sleep(1)
        lines += process.stdout.readlines()
    assert process.returncode == 1
    assert len(lines) == COUNT + 1
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_cluster_that_asks_for_no_token_is_refused(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not here: pip install 'octray[cluster]'")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert main(arguments(studies, bundle, tmp_path / "results", "--engine", "ray", "--address", "127.0.0.1:1")) == 2
    assert "The Ray cluster must ask for a token" in capsys.readouterr().err


def test_without_ray_it_is_said_how_to_get_it(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pipeline.job.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert main(arguments(studies, bundle, tmp_path / "results", "--engine", "ray")) == 2
    assert "pip install 'octray[cluster]'" in capsys.readouterr().err

"""Bad input where results are made: `octray score` and the HTTP service refuse it with reasons, and go on."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pipeline.errors import Reason
from services.api.app import create_app
from services.api.options import Settings
from services.api.problems import MEDIA_TYPE, Problem
from tests.builders import make_bundle, make_dicom
from tests.fuzz.bombs import BOMBS, SMALL, endless_items
from tests.fuzz.mutations import mutants
from tests.test_services_api import running

QUICK = [name for name in BOMBS if not any(word in name for word in ("GiB", "MiB", "million", "limit", "8192 that", "scans"))]
REASONS = {reason.value for reason in Reason}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    bundle = make_bundle(tmp_path_factory.mktemp("served") / "bundle", intended_use={"modalities": (), "view_positions": ()})
    with running(create_app(bundle, Settings())) as client:
        yield client


def post(client: TestClient, content: bytes, name: str = "bad.dcm") -> str:
    """Send one file; returns the reason of its refusal, empty where it was scored."""
    response = client.post("/v1/predict?heatmaps=false", files=[("files", (name, content))])
    if response.status_code == 200:
        return ""
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    problem = Problem.model_validate_json(response.content)
    assert problem.failures
    assert "Traceback" not in response.text
    assert "fault of octray" not in response.text
    return problem.failures[0].reason


def test_the_service_answers_malformed_files_and_stays_alive(client: TestClient, shared_data: Path) -> None:
    files = [path for path in sorted((shared_data / "dicom-malformed").rglob("*")) if path.is_file()]
    reasons = [post(client, path.read_bytes()) for path in files]
    assert len(reasons) >= 40
    assert set(reasons) <= REASONS | {""}
    assert client.get("/readyz").status_code == 200


def test_the_service_answers_files_that_ask_for_much(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(make_dicom(SMALL))
    contents = [BOMBS[name]() for name in QUICK] + [mutant.content() for mutant in mutants([tmp_path / "a.dcm"], 6, 6)]
    reasons = [post(client, content) for content in contents]
    assert set(reasons) <= REASONS | {""}
    assert len(set(reasons)) > 4
    assert post(client, make_dicom(SMALL)) == ""


@pytest.mark.slow
def test_the_service_ends_a_file_that_hangs_and_scores_the_next(client: TestClient) -> None:
    assert post(client, endless_items(200_000)) == "time_limit"
    assert post(client, make_dicom(SMALL)) == ""


def score(studies: Path, tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], list[dict[str, str]]]:
    """Run `octray score` as a process; returns it and the rows of failures.csv."""
    make_bundle(tmp_path / "bundle", intended_use={"modalities": (), "view_positions": ()})
    command = [sys.executable, "-m", "pipeline.cli.main", "score", studies, "--bundle", tmp_path / "bundle"]
    ended = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    with (tmp_path / "out" / "failures.csv").open(newline="", encoding="utf-8") as file:
        return ended, list(csv.DictReader(file))


def test_score_goes_through_malformed_files(tmp_path: Path, shared_data: Path) -> None:
    ended, failures = score(shared_data / "dicom-malformed", tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(failures) > 5
    assert {row["reason"] for row in failures} <= REASONS
    assert not any("fault of octray" in row["message"] for row in failures)


def test_score_goes_through_files_that_ask_for_much(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    for number, name in enumerate(QUICK):
        (studies / f"bomb{number:02d}").write_bytes(BOMBS[name]())
    (studies / "a.dcm").write_bytes(make_dicom(SMALL))
    ended, failures = score(studies, tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "a.dcm" not in {row["source"] for row in failures}
    assert {row["reason"] for row in failures} <= REASONS
    assert not any("fault of octray" in row["message"] for row in failures)

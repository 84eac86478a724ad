"""The demo: README's first command, with fewer studies."""

from pathlib import Path

import pytest

from pipeline.cli import demo


@pytest.mark.slow
def test_the_demo_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("_XRAY_STUDIES", 40), ("_OCT_STUDIES", 24), ("_NEW_STUDIES", 2)):
        monkeypatch.setattr(demo, name, count)
    out = tmp_path / "demo-out"
    assert demo.demo(out) == 0
    said = capsys.readouterr().out
    places = [out / "results" / name for name in ("report.html", "predictions.csv", "heatmaps")]
    places += [out / "bundle-xray" / "MODEL_CARD.md", out / "bundle-oct" / "MODEL_CARD.md", out / "mlflow.db"]
    assert all(place.exists() for place in places)
    assert all(str(place) in said for place in places if "oct" not in place.parent.name)
    results = (out / "results" / "predictions.csv").read_text() + (out / "results" / "failures.csv").read_text()
    assert "RG1_UNCR.dcm" in results  # scored, or refused as unlike the synthetic ones: never lost


def test_a_step_that_fails_ends_the_demo(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo._octray("score", tmp_path, "--bundle", tmp_path / "gone", "--out", tmp_path / "results")

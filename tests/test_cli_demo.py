"""The demo: README's first command, with fewer studies."""

from pathlib import Path

import pytest

from pipeline.cli import demo
from pipeline.errors import InputError


@pytest.mark.slow
def test_the_demo_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("_OCT_STUDIES", 24), ("_NEW_STUDIES", 2)):
        monkeypatch.setattr(demo, name, count)
    out = tmp_path / "demo-out"
    assert demo.demo(out) == 0
    said = capsys.readouterr().out
    places = [out / "results" / name for name in ("report.html", "predictions.csv", "heatmaps")]
    places += [out / "bundle-xray" / "MODEL_CARD.md", out / "bundle-oct" / "MODEL_CARD.md", out / "mlflow.db"]
    assert all(place.exists() for place in places)
    assert all(str(place) in said for place in places if "oct" not in place.parent.name)
    for text in ((out / "bundle-xray" / "MODEL_CARD.md").read_text(), (out / "results" / "report.html").read_text()):
        assert "do not rely on them" not in text  # the first thing that a new user would read
    results = (out / "results" / "predictions.csv").read_text() + (out / "results" / "failures.csv").read_text()
    assert "RG1_UNCR.dcm" in results  # scored, or refused as unlike the synthetic ones: never lost


def test_a_step_that_fails_ends_the_demo(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo._octray("score", tmp_path, "--bundle", tmp_path / "gone", "--out", tmp_path / "results")


def test_a_folder_that_no_demo_wrote_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_octray", lambda *_: pytest.fail("the demo has begun"))
    (tmp_path / "theses").mkdir()
    (tmp_path / "theses" / "mine.txt").write_text("years of work")
    for name in ("theses", "theses/mine.txt"):
        with pytest.raises(InputError, match=f"{Path(name).name} is not from an earlier demo"):
            demo.demo(tmp_path / name)
    assert (tmp_path / "theses" / "mine.txt").read_text() == "years of work"


def test_an_earlier_demo_is_removed(tmp_path: Path) -> None:
    for name in ("new", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        demo._make_anew(tmp_path / name)
        (tmp_path / name / "results").mkdir()
        demo._make_anew(tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == [demo._SIGN]

"""The demo: the main job end to end on synthetic studies and one real radiograph, by the same commands that a user types."""

import shlex
import shutil
import sys
from collections.abc import Collection
from importlib import resources
from pathlib import Path

from pipeline.cli.main import DONE, SOME_FAILED, main
from pipeline.errors import InputError

_XRAY_STUDIES, _OCT_STUDIES, _NEW_STUDIES = 160, 60, 6
_OCT_OPTIONS = ("preprocessing.fit=crop", "preprocessing.mask_white_borders=true", "train.way=probe")
_RADIOGRAPH = "RG1_UNCR.dcm"  # a real, public computed radiograph that the package pydicom-data carries

_SIGN = ".octray-demo"


def demo(out: Path) -> int:
    """Run the demo in `out`, which is emptied first, and return 0 if all of it worked.

    Synthetic chest radiographs and OCT volumes are written, ingested and learned; other studies, among them a real radiograph,
    are scored; at the end the places of all results are printed.

    Raises
    ------
    InputError
        If `out` holds files that no demo wrote; nothing is removed then.
    """
    _make_anew(out)
    _octray("phantom", out / "xray", "--modality", "xray", "--studies", _XRAY_STUDIES, "--seed", 1)
    _octray("phantom", out / "oct", "--modality", "oct", "--studies", _OCT_STUDIES, "--seed", 1)
    for name, options in (("xray", ()), ("oct", _OCT_OPTIONS)):
        labels = ("--labels", out / name / "labels.csv", "--split", "50/15/15/20")
        _octray("ingest", out / name / "studies", *labels, "--out", out / f"index-{name}")
        store = f"tracking.uri=sqlite:///{out / 'mlflow.db'}"
        _octray("train", "smoke", "--index", out / f"index-{name}", "--out", out / f"bundle-{name}", store, *options)
        _octray("evaluate", out / f"bundle-{name}", "--index", out / f"index-{name}")
    _octray("phantom", out / "new", "--modality", "xray", "--studies", _NEW_STUDIES, "--seed", 2)
    with resources.as_file(resources.files("data_store") / "data" / _RADIOGRAPH) as radiograph:
        shutil.copy(radiograph, out / "new" / "studies" / _RADIOGRAPH)
    _octray(
        "score", out / "new" / "studies", "--bundle", out / "bundle-xray", "--out", out / "results", ends=(DONE, SOME_FAILED)
    )
    print(_places(out))
    return 0


def _make_anew(out: Path) -> None:
    """Remove an earlier demo, and nothing else, and leave a sign that another is here."""
    is_ours = (out / _SIGN).is_file()
    if out.exists() and not is_ours and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out.resolve().name} is not from an earlier demo, and is left as it is. Give a new folder.")
    if is_ours:
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _SIGN).touch()


def _octray(*words: object, ends: Collection[int] = (DONE,)) -> None:
    """Print one command and run it; stop if it ends with another code."""
    arguments = [str(word) for word in words]
    sys.stderr.write(f"\n$ octray {shlex.join(arguments)}\n")
    sys.stderr.flush()
    if (code := main(arguments)) not in ends:
        raise SystemExit(code)


def _places(out: Path) -> str:
    return f"""
Everything worked. The networks learned from a few synthetic images only, so many frames are uncertain, which the tables above
count as errors. Their results on the real radiograph mean nothing. If it was refused because it is unlike the synthetic images,
that is correct, and the report says so.
  report page   {out / "results" / "report.html"}
  table         {out / "results" / "predictions.csv"}
  heatmaps      {out / "results" / "heatmaps"}
  model card    {out / "bundle-xray" / "MODEL_CARD.md"}
  MLflow store  {out / "mlflow.db"}   (octray ui --store sqlite:///{out / "mlflow.db"})
Serve the bundle over HTTP:
  .venv/bin/octray serve --bundle {out / "bundle-xray"}"""


if __name__ == "__main__":
    try:
        sys.exit(demo(Path(sys.argv[1])))
    except InputError as unusable:
        sys.exit(f"demo: {unusable}")

"""What the wheel ships: every file of the packages that is not Python."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_data_file_of_a_package_is_shipped() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = {
        path
        for package, patterns in settings["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    packages = ("octray", "pipeline", "services", "configs", "data_catalog")
    files = {path for package in packages for path in (ROOT / package).rglob("*") if path.is_file()}
    lacking = {path for path in files - shipped if path.suffix not in (".py", ".pyc")}
    assert not lacking, sorted(str(path.relative_to(ROOT)) for path in lacking)
    assert (ROOT / "pipeline/results/templates/report.html") in shipped

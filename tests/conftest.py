"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("octray", deadline=None)
settings.load_profile("octray")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real studies; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("OCTRAY_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the shared data are not here: set OCTRAY_SHARED_DATA to their folder")
    return folder

"""The filters of scipy, which take a third of a second to import, and which few frames need."""

from functools import cache
from typing import Any


@cache
def ndimage() -> Any:
    """Return `scipy.ndimage`, imported when it is first asked for."""
    from scipy import ndimage

    return ndimage

"""Results as DICOM objects in the source's own study.

Only the names of the objects stand here; the modules import highdicom, which takes long, and are imported when they are used.
"""

from enum import StrEnum


class Kind(StrEnum):
    """A structured report, a parametric map of the evidence, and a secondary capture of the picture."""

    SR = "sr"
    PM = "pm"
    SC = "sc"

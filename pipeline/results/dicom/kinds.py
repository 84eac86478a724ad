"""Names the DICOM objects that results can be written as."""

from enum import StrEnum


class Kind(StrEnum):
    """A structured report, a parametric map of the evidence, and a secondary capture of the picture."""

    SR = "sr"
    PM = "pm"
    SC = "sc"

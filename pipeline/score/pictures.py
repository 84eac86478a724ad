"""The heatmaps of a frame as files of pictures, made where the frame is scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, Heatmap
from pipeline.score.overlay import draw, jpeg, png
from pipeline.score.view import View


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is made of the heatmaps of a frame.

    Parameters
    ----------
    maps
        Whether predictions carry their values.
    jpeg
        Whether they are drawn as JPEG files.
    png
        Whether they are drawn as PNG files, where the frame is one of a DICOM file.
    """

    maps: bool = False
    jpeg: bool = False
    png: bool = False

    @property
    def is_drawn(self) -> bool:
        """Whether there is any picture."""
        return self.jpeg or self.png

    @property
    def is_computed(self) -> bool:
        """Whether heatmaps are needed at all."""
        return self.maps or self.is_drawn


NOTHING_DRAWN = Drawing()


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One heatmap on its frame.

    Parameters
    ----------
    label
        Whose heatmap it is.
    has_positive_evidence
        As in `Heatmap`.
    jpeg, png
        The files; empty where they were not asked for.
    rows, columns
        Of the frame alone, which stands at the upper left of the picture.
    fault
        Why they could not be drawn; empty where they were.
    """

    label: str
    has_positive_evidence: bool
    jpeg: bytes = b""
    png: bytes = b""
    rows: int = 0
    columns: int = 0
    fault: str = ""


def pictures(result: FramePrediction, view: View, manifest: Manifest, as_jpeg: bool, as_png: bool) -> tuple[Drawn, ...]:
    """Draw the heatmaps of a frame that people see on its view; one that cannot be drawn costs nothing else."""
    return tuple(_drawn(heatmap, view, manifest, as_jpeg, as_png) for heatmap in shown(result, manifest))


def _drawn(heatmap: Heatmap, view: View, manifest: Manifest, as_jpeg: bool, as_png: bool) -> Drawn:
    known = partial(Drawn, heatmap.label, heatmap.has_positive_evidence)
    try:
        picture = draw(view, heatmap, manifest.heatmap.full_scale)
        return known(jpeg(picture) if as_jpeg else b"", png(picture) if as_png else b"", *view.grey.shape)
    except Exception as error:  # of Pillow or a codec, which have no base in common; the numbers stand without a picture
        return known(fault=type(error).__name__)


def shown(result: FramePrediction, manifest: Manifest) -> Sequence[Heatmap]:
    """Return the heatmaps of a frame that people see: all but that of the label of no finding."""
    return [heatmap for heatmap in result.heatmaps if heatmap.label != manifest.normal_label]

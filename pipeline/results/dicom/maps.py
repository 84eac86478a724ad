"""Heatmaps as Parametric Maps (PS3.3 A.75): evidence as floats on the grid of their frames, one object for each label."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import highdicom as hd
import numpy as np
from highdicom.pm import DerivedPixelContrastValues, ParametricMap, RealWorldValueMapping
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.valuerep import DS

from pipeline.frames import FloatArray
from pipeline.imaging.heatmap_grid import onto_frame
from pipeline.imaging.preprocess import placement
from pipeline.predictions import DIGITS, FramePrediction
from pipeline.results.dicom.geometry import Space, grid_shape, on_grid, space_of
from pipeline.results.dicom.identity import Author, describe_image, finished, stand_in
from pipeline.results.dicom.kinds import Kind
from pipeline.results.dicom.source import Source
from pipeline.settings import Preprocessing

_NO_UNITS = Code("1", "UCUM", "no units")
_WEIGHTED = Code("130403", "DCM", "Gradient-weighted class activation")
"""True of every method of `HeatmapMethod`; which one it was stands in LUT Explanation (0028,3003)."""


def write_maps(author: Author, results: Sequence[FramePrediction], heights: Mapping[int, float]) -> Iterator[tuple[int, bytes]]:
    """Write a map of each label but the normal one, with one frame for each scored frame that has its heatmap.

    Parameters
    ----------
    author
        Who writes them.
    results
        Of the frames of one instance.
    heights
        As `bright_height` gives them, by frame number; 0.5 where a frame has none.

    Yields
    ------
    tuple[int, bytes]
        The label's place in the bundle from 1 on, and the DICOM file.
    """
    for place, label in enumerate(author.manifest.labels, 1):
        maps = {
            result.key.frame_number: _on_frame(heatmap.values, author, heights.get(result.key.frame_number, 0.5))
            for result in results
            for heatmap in result.heatmaps
            if heatmap.label == label != author.manifest.normal_label
        }
        if maps:
            yield place, _write(author, label, place, maps)


def _on_frame(values: FloatArray, author: Author, height: float) -> FloatArray:
    source, preprocessing = author.source, author.manifest.preprocessing
    return map_on_grid(values, (source.rows, source.columns), preprocessing, height)


def map_on_grid(values: FloatArray, shape: tuple[int, int], preprocessing: Preprocessing, height: float = 0.5) -> FloatArray:
    """Map a heatmap onto the grid of a map that covers a frame of `shape`; its cells are rounded as all written numbers are."""
    box = placement(*shape, preprocessing, height)
    cells = np.asarray(np.round(values, DIGITS), np.float32)
    return onto_frame(cells, box, preprocessing.size, grid_shape(*shape))


def _write(author: Author, label: str, place: int, maps: Mapping[int, FloatArray]) -> bytes:
    source = author.source
    pixels = np.stack(list(maps.values()))
    space = on_grid(space_of(source, tuple(maps)), (source.rows, source.columns), pixels.shape[1:])
    orientation = hd.PlaneOrientationSequence("PATIENT", space.orientation)
    positions = [hd.PlanePositionSequence("PATIENT", position) for position in space.positions]
    arguments = author.arguments(Kind.PM, _instance_number(author, place), label, hashlib.sha256(pixels.data).hexdigest())
    parametric = ParametricMap(
        source_images=[_located(source, number, space, index) for index, number in enumerate(maps)],
        pixel_array=pixels,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(author, label, pixels)],
        voi_lut_transformations=[_window(author.manifest.heatmap.full_scale)],
        content_label="HEATMAP",
        content_description=f"Heatmap of {label}: {author.manifest.heatmap.meaning}"[:64].replace("\\", "/"),
        pixel_measures=hd.PixelMeasuresSequence(space.spacing, space.thickness),
        plane_orientation=orientation,
        plane_positions=positions,
        derived_pixel_contrast=DerivedPixelContrastValues.QUANTITY,
        **arguments | {"series_instance_uid": author.series_uid(Kind.PM, space.frame_of_reference_uid)},
    )
    describe_image(parametric, author)
    _refer_once(parametric, source)
    return finished(parametric, author)


def _located(source: Source, number: int, space: Space, index: int) -> Dataset:
    """Return the stand-in for one frame, as if it were an image of its own at the frame's place."""
    image = stand_in(source, number)
    image.FrameOfReferenceUID = space.frame_of_reference_uid
    image.ImageOrientationPatient = [DS(value, auto_format=True) for value in space.orientation]
    image.ImagePositionPatient = [DS(value, auto_format=True) for value in space.positions[index]]
    image.PixelSpacing = [DS(value, auto_format=True) for value in space.spacing]
    image.SliceThickness = DS(space.thickness, auto_format=True)
    return image


def _refer_once(parametric: Dataset, source: Source) -> None:
    """Name the source once for the whole object; that frames come from its frames stands in their functional groups."""
    image = stand_in(source)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    parametric.SourceImageSequence = [reference]
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = image.SeriesInstanceUID, [deepcopy(reference)]
    parametric.ReferencedSeriesSequence = [series]


def _instance_number(author: Author, place: int) -> int:
    return (author.source.instance_number - 1) * len(author.manifest.labels) + place


def _mapping(author: Author, label: str, pixels: NDArray[np.float32]) -> RealWorldValueMapping:
    support = author.manifest.heatmap
    what = "exact evidence" if support.is_part_of_logit else "evidence"
    return RealWorldValueMapping(
        lut_label="EVIDENCE",
        lut_explanation=f"{support.method}, {what} for {label}"[:64].replace("\\", "/"),
        unit=_NO_UNITS,
        value_range=(float(pixels.min()), float(pixels.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=_WEIGHTED,
    )


def _window(full_scale: float) -> hd.VOILUTTransformation:
    """Return the window that shows maps on the bundle's one scale, as its pictures do."""
    return hd.VOILUTTransformation(
        window_center=full_scale / 2,
        window_width=full_scale,
        voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,  # LINEAR allows no width below 1 (PS3.3 C.11.2.1.2)
    )

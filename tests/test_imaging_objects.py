import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.records import Frame
from tests.builders import make_dicom

VOLUME = np.arange(3 * 6 * 5, dtype=np.uint16).reshape(3, 6, 5)


def read(pixels: np.ndarray = VOLUME, **overrides: object) -> list[Frame]:
    return list(read_frames_from_bytes(make_dicom(pixels, **overrides), "a.dcm"))


def make_item(**values: object) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def group(macro: str, **values: object) -> Dataset:
    return make_item(**{macro: Sequence([make_item(**values)])})


@pytest.mark.parametrize(
    ("sop_class", "named", "expected"),
    [
        (uid.OphthalmicPhotography8BitImageStorage, "OPT", "OP"),
        (uid.OphthalmicPhotography16BitImageStorage, None, "OP"),
        (uid.WideFieldOphthalmicPhotographyStereographicProjectionImageStorage, "OPT", "OP"),
        (uid.OphthalmicOpticalCoherenceTomographyEnFaceImageStorage, "OPT", "OPTENF"),
        (uid.OphthalmicOpticalCoherenceTomographyBscanVolumeAnalysisStorage, "OPT", "OPTBSV"),
        (uid.OphthalmicTomographyImageStorage, None, "OPT"),
        (uid.OphthalmicTomographyImageStorage, "OPT", "OPT"),
        (uid.OphthalmicTomographyImageStorage, "OP", "OP"),
        (uid.DigitalMammographyXRayImageStorageForPresentation, "CR", "MG"),
        (uid.DigitalXRayImageStorageForPresentation, None, "DX"),
        (uid.ComputedRadiographyImageStorage, None, "CR"),
        (uid.SecondaryCaptureImageStorage, None, ""),
        (uid.SecondaryCaptureImageStorage, "OPT", "OPT"),
        (uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage, "OT", "OT"),
    ],
)
def test_modality_is_what_the_sop_class_allows(sop_class: str, named: str | None, expected: str) -> None:
    assert {frame.modality for frame in read(SOPClassUID=sop_class, Modality=named)} == {expected}


@pytest.mark.parametrize(
    ("image_type", "expected"),
    [
        (["ORIGINAL", "PRIMARY"], "OPT"),
        (["ORIGINAL", "PRIMARY", "", "OCT"], "OPT"),
        (["ORIGINAL", "PRIMARY", "EN FACE"], "OPTENF"),
        (["DERIVED", "PRIMARY", "PROJECTION"], "OPTENF"),
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], "OP"),
        (["ORIGINAL", "PRIMARY", "OCT", "SLO"], "OP"),
        (["ORIGINAL", "PRIMARY", "SLOW"], "OPT"),
    ],
)
def test_image_type_tells_en_face_and_fundus_from_b_scans(image_type: list[str], expected: str) -> None:
    assert {frame.modality for frame in read(Modality="OPT", ImageType=image_type)} == {expected}
    assert {frame.modality for frame in read(Modality="CR", ImageType=image_type)} == {"CR"}


def test_frames_of_one_object_have_their_own_modality() -> None:
    frames = Sequence(
        [
            group("OphthalmicFrameLocationSequence", OphthalmicImageOrientation="TRANSVERSE"),
            group("OphthalmicFrameLocationSequence", OphthalmicImageOrientation="LINEAR"),
            make_item(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        ]
    )
    found = read(Modality="OPT", SOPClassUID=uid.OphthalmicTomographyImageStorage, PerFrameFunctionalGroupsSequence=frames)
    assert [frame.modality for frame in found] == ["OPTENF", "OPT", "OP"]


def test_frame_type_comes_before_image_type_and_stands_in_any_macro() -> None:
    frames = Sequence(
        [
            group("CTImageFrameTypeSequence", FrameType=["ORIGINAL", "PRIMARY", "B SCAN"]),
            group("CTImageFrameTypeSequence", FrameType=["ORIGINAL", "PRIMARY", "FUNDUS"]),
            Dataset(),
        ]
    )
    found = read(Modality="OPT", ImageType=["ORIGINAL", "PRIMARY", "EN FACE"], PerFrameFunctionalGroupsSequence=frames)
    assert [frame.modality for frame in found] == ["OPT", "OP", "OPTENF"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"PresentationIntentType": "FOR PROCESSING", "Modality": "DX"},
        {"SOPClassUID": uid.DigitalXRayImageStorageForProcessing, "Modality": "DX"},
    ],
)
def test_images_for_processing_are_read_and_said_so(overrides: dict[str, str]) -> None:
    (frame,) = read(VOLUME[0], **overrides)
    assert frame.notes[0].startswith("The image is meant for processing, not for presentation")
    assert frame.stored_sha256 == read(VOLUME[0])[0].stored_sha256


def test_images_for_presentation_need_no_note() -> None:
    overrides = {"PresentationIntentType": "FOR PRESENTATION", "SOPClassUID": uid.DigitalXRayImageStorageForPresentation}
    (frame,) = read(VOLUME[0].astype(np.uint8), **overrides)
    assert frame.notes == ()


def test_shared_laterality_and_spacing_of_an_enhanced_object_hold_for_every_frame() -> None:
    shared = group("PixelMeasuresSequence", PixelSpacing=[0.0039, 0.0117])
    shared.FrameAnatomySequence = Sequence([make_item(FrameLaterality="L")])
    overrides = {"SharedFunctionalGroupsSequence": Sequence([shared]), "PixelSpacing": [1, 1], "ImageLaterality": "R"}
    frames = read(SOPClassUID=uid.OphthalmicTomographyImageStorage, Modality="OPT", **overrides)
    assert {(frame.laterality, frame.pixel_spacing_mm) for frame in frames} == {("L", (0.0039, 0.0117))}

from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.dicom.terms import is_without_pixels
from pipeline.imaging.sources import read_frames_from_bytes
from tests.builders import make_dicom, make_dicomdir

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


def reason(content: bytes) -> Reason:
    with pytest.raises(UnreadableError) as caught:
        list(read_frames_from_bytes(content, "a"))
    return caught.value.reason


@pytest.mark.parametrize(
    "name", ["reportsi.dcm", "test-SR.dcm", "rtplan.dcm", "rtplan_truncated.dcm", "rtstruct.dcm", "ExplVR_BigEndNoMeta.dcm"]
)
def test_real_objects_without_pixels_are_no_images(name: str) -> None:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    assert reason(Path(path).read_bytes()) is Reason.NO_IMAGE


@pytest.mark.parametrize(
    "sop_class",
    [
        uid.ComprehensiveSRStorage,
        uid.GrayscaleSoftcopyPresentationStateStorage,
        uid.KeyObjectSelectionDocumentStorage,
        uid.EncapsulatedPDFStorage,
        uid.TwelveLeadECGWaveformStorage,
        "1.2.840.10008.5.1.4.1.1.129",
        "1.2.840.10008.5.1.1.27",
        "1.3.12.2.1107.5.9.1",
    ],
)
def test_the_sop_class_decides_whether_pixels_are_missing(sop_class: str) -> None:
    whole = make_dicom(PixelData=None, SOPClassUID=sop_class)
    assert reason(whole) is Reason.NO_IMAGE
    assert {reason(whole[:cut]) for cut in range(len(whole) - 150, len(whole), 7)} == {Reason.NO_IMAGE}


def test_a_radiograph_that_is_cut_off_before_its_pixels_is_a_failure() -> None:
    whole = make_dicom()
    pixels = whole.index(b"\xe0\x7f\x10\x00")
    assert {reason(whole[:cut]) for cut in range(140, pixels, 5)} <= {
        Reason.NO_PIXELS,
        Reason.TRUNCATED,
        Reason.INCONSISTENT,
        Reason.DECODE_FAILED,
        Reason.UNSUPPORTED_ENCODING,
    }
    assert reason(make_dicom(PixelData=None, SOPClassUID=None)) is Reason.NO_PIXELS
    assert reason(make_dicom(PixelData=None, SOPClassUID="1.2.3.4")) is Reason.NO_PIXELS


def test_an_image_that_is_cut_off_within_its_sop_class_is_a_failure() -> None:
    """The start of this class is one of objects without pixels."""
    whole = make_dicom(SOPClassUID=uid.OphthalmicThicknessMapStorage)
    end = whole.rindex(uid.OphthalmicThicknessMapStorage.encode()) + 30
    assert Reason.NO_IMAGE not in {reason(whole[:cut]) for cut in range(132, end)}


def test_a_directory_by_any_name_is_no_image() -> None:
    assert reason(make_dicomdir(("A",))) is Reason.NO_IMAGE


def test_no_class_of_images_is_taken_for_one_without_pixels() -> None:
    """By the names that PS3.6 gives the classes; doses may have pixels."""
    storage = {value: name for name, value in vars(uid).items() if name.endswith("Storage") and isinstance(value, uid.UID)}
    images = {one for one, name in storage.items() if "Image" in name or "Segmentation" in name or "Map" in name}
    images |= {uid.RTDoseStorage, uid.ParametricMapStorage, uid.EnhancedUSVolumeStorage}
    images -= {uid.SurfaceSegmentationStorage, uid.RealWorldValueMappingStorage}
    assert [storage[one] for one in images if is_without_pixels(one)] == []
    others = {
        one for one, name in storage.items() if any(word in name for word in ("SR", "Presentation", "Waveform", "Encaps"))
    }
    assert len(others) > 50
    assert [storage[one] for one in others if not is_without_pixels(one)] == []

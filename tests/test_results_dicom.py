"""Results as DICOM objects: what they say, where they lie, whose they are, and that they never change."""

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom import Image as ReadImage
from highdicom.sr import Comprehensive3DSR, srread
from PIL import Image
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from pipeline.errors import UnreadableError
from pipeline.imaging.preprocess import bright_height, onto_frame, placement
from pipeline.imaging.sources import StudyFile, read_frames
from pipeline.model.bundle import Manifest
from pipeline.results.dicom import Kind
from pipeline.results.dicom.parametric_maps import LONGEST_SIDE, grid_shape
from pipeline.results.dicom.structured_report import PRIVATE, finding_code
from pipeline.results.dicom.write import write_objects
from pipeline.settings import Fit, Preprocessing
from tests.builders import make_bundle, make_dataset, make_dicom, make_support
from tests.dicom_results import MADE, of_kind, phantom, png, raw_dicom, result, rg1, scored, values, written

LABELS = ("NORMAL", "PNEUMONIA", "Rare, thing")
SPACING = (0.5, 0.25)
ORIENTED: dict[str, Any] = {
    "FrameOfReferenceUID": "1.2.9",
    "ImagePositionPatient": [10, 20, 30],
    "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
    "PixelSpacing": list(SPACING),
    "SliceThickness": 2,
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_bundle(tmp_path_factory.mktemp("bundle"), LABELS).manifest


def groups(content: bytes) -> list[Any]:
    report = srread(io.BytesIO(content))
    assert isinstance(report, Comprehensive3DSR)
    found: list[Any] = report.content.get_image_measurement_groups()
    return found


def report_of(objects: dict[str, bytes]) -> bytes:
    (content,) = (content for name, content in objects.items() if name.endswith("-sr.dcm"))
    return content


def test_equal_input_gives_equal_bytes_at_any_time(manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom()
    results = scored(content, manifest, tmp_path)
    first = written(content, results, manifest)
    time.sleep(1.1)  # DICOM times have whole seconds
    assert written(content, results, manifest) == first
    assert sorted(name.rsplit(f"{results[0].key.sop_instance_uid}-")[1] for name in first) == [
        *("pm-2.dcm", "pm-3.dcm", "sc-1-3.dcm", "sr.dcm")
    ]


def test_content_date_and_time_are_when_the_content_was_made_and_other_times_are_other_objects(
    manifest: Manifest, tmp_path: Path
) -> None:
    content = make_dicom(ContentDate="20240103", ContentTime="090807", StudyDate="20240102", StudyTime="101112")
    results = scored(content, manifest, tmp_path)
    here = MADE.astimezone()
    later = MADE + timedelta(seconds=1)
    uids = []
    for made in (MADE, MADE.astimezone(timezone(timedelta(hours=5))), MADE + timedelta(milliseconds=400), later):
        objects = [one for kind in Kind for one in of_kind(written(content, results, manifest, made), kind)]
        local = made.astimezone(here.tzinfo)
        assert {(one.ContentDate, one.ContentTime) for one in objects} == {(f"{local:%Y%m%d}", f"{local:%H%M%S}")}
        assert not any("TimezoneOffsetFromUTC" in one for one in objects)  # study times would then mean something else
        assert {one.StudyDate for one in objects} == {"20240102"}
        uids.append([one.SOPInstanceUID for one in objects])
        assert len({one.SeriesInstanceUID for one in objects}) == 3
    assert uids[0] == uids[1] == uids[2]  # the same second
    assert not set(uids[0]) & set(uids[3])


@pytest.mark.parametrize(
    ("said", "expected", "date", "clock"),
    [
        ("+0200", "+0200", "20260305", "000607"),
        ("-0330", "-0330", "20260304", "183607"),
        ("+0000", "+0000", "20260304", "220607"),
        *(("+1500", None, "", ""), ("-0000", None, "", ""), ("CET", None, "", ""), ("+02:00", None, "", "")),
    ],
)
def test_the_time_zone_of_the_source_is_that_of_its_objects(
    said: str, expected: str | None, date: str, clock: str, manifest: Manifest, tmp_path: Path
) -> None:
    content = raw_dicom(TimezoneOffsetFromUTC=said)
    objects = written(content, scored(content, manifest, tmp_path), manifest)
    local = MADE.astimezone()
    for one in (dataset for kind in Kind for dataset in of_kind(objects, kind)):
        assert one.get("TimezoneOffsetFromUTC") == expected
        shown = (date, clock) if expected else (f"{local:%Y%m%d}", f"{local:%H%M%S}")
        assert (one.ContentDate, one.ContentTime) == shown


def test_findings_say_in_their_own_item_whether_they_are_there(manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom()
    report = dcmread(io.BytesIO(report_of(written(content, scored(content, manifest, tmp_path), manifest))))
    found = []
    for item in items(report):
        if item.ConceptNameCodeSequence[0].CodeValue == "121071":
            (child,) = item.ContentSequence
            assert (child.RelationshipType, child.ConceptNameCodeSequence[0].CodeValue) == ("HAS CONCEPT MOD", "121052")
            found.append((item.ConceptCodeSequence[0].CodeMeaning, child.ConceptCodeSequence[0].CodeMeaning))
    assert found == [("Normal", "Present"), ("Pneumonia", "Presence Undetermined"), ("Rare, thing", "Absent")]


def items(dataset: Dataset) -> Iterator[Dataset]:
    """Every content item of a report."""
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from items(item)


@pytest.mark.filterwarnings("ignore:The (value|PN component) length")
def test_values_that_are_too_long_are_cut_and_identifiers_left_out_or_kept(manifest: Manifest, tmp_path: Path) -> None:
    family, given = "F" * 70, "G" * 30
    content = raw_dicom(
        PatientName=f"{family}^{given}=ideographic^name",
        PatientID="P" * 70,
        IssuerOfPatientID="I" * 70,
        AccessionNumber="A" * 20,
        StudyID="S" * 20,
        StudyDescription="D" * 70,
        ReferringPhysicianName="R" * 70,
        DeidentificationMethod="M" * 70 + "\\short",
        LossyImageCompression="01",
        LossyImageCompressionRatio="10.000000000000000001",
    )
    objects = written(content, scored(content, manifest, tmp_path), manifest)
    for one in (dataset for kind in Kind for dataset in of_kind(objects, kind)):
        assert one.PatientName.components[0] == family[:64]
        assert one.PatientName.components[1] == "ideographic^name"
        assert one.PatientID == "P" * 70
        assert "IssuerOfPatientID" not in one
        assert (one.AccessionNumber, one.StudyID) == ("", "")
        assert (one.StudyDescription, str(one.ReferringPhysicianName)) == ("D" * 64, "R" * 64)
        assert list(one.DeidentificationMethod) == ["M" * 64, "short"]
        assert "LossyImageCompressionRatio" not in one


def test_other_results_get_other_uids_and_stay_in_their_series(manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom()
    (one,) = scored(content, manifest, tmp_path)
    (first,) = of_kind(written(content, (one,), manifest), Kind.SR)
    (second,) = of_kind(written(content, (replace(one, facts=replace(one.facts, laterality="R")),), manifest), Kind.SR)
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    other = make_bundle(tmp_path / "other", LABELS, temperature=2.0).manifest
    (third,) = of_kind(written(content, (result(one.key, other),), other), Kind.SR)
    assert third.SeriesInstanceUID != first.SeriesInstanceUID


def test_objects_belong_to_the_patient_and_the_study_of_their_source(manifest: Manifest, tmp_path: Path) -> None:
    identity = {
        "PatientName": "Müller^Änne",
        "PatientID": "P-7",
        "PatientBirthDate": "19500101",
        "PatientSex": "F",
        "StudyDate": "20240102",
        "StudyTime": "101112",
        "StudyID": "S1",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "Who^Doctor",
    }
    content = make_dicom(SpecificCharacterSet="ISO_IR 100", ContentDate="20240103", ContentTime="090807", **identity)
    source = dcmread(io.BytesIO(content))
    objects = written(content, scored(content, manifest, tmp_path), manifest)
    for one in (dataset for kind in Kind for dataset in of_kind(objects, kind)):
        assert {keyword: str(one[keyword].value) for keyword in identity} == identity
        assert one.StudyInstanceUID == source.StudyInstanceUID
        assert one.SeriesInstanceUID != source.SeriesInstanceUID
        assert one.SeriesNumber > 9000
        assert "not for diagnosis" in one.SeriesDescription
        assert f"bundle {manifest.bundle_id}" in one.SoftwareVersions


def test_broken_and_missing_elements_become_empty_or_derived(manifest: Manifest, tmp_path: Path) -> None:
    dataset = make_dataset(PatientName=None, PatientID=None, SOPClassUID=None, StudyInstanceUID=None, SOPInstanceUID=None)
    for keyword, text in (("StudyDate", b"yesterday "), ("PatientSex", b"X "), ("StudyTime", b"99:99 ")):
        tag = Tag(keyword)
        dataset[tag] = RawDataElement(tag, dictionary_VR(tag), len(text), text, 0, False, True)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=False, implicit_vr=False, little_endian=True)
    content = buffer.getvalue()
    results = scored(content, manifest, tmp_path)
    objects = written(content, results, manifest)
    assert len(objects) == 4
    for one in (dataset for kind in Kind for dataset in of_kind(objects, kind)):
        assert one.StudyInstanceUID == results[0].key.study_instance_uid
        assert (one.StudyDate, one.StudyTime, one.PatientSex, str(one.PatientName), one.PatientID) == ("", "", "", "", "")
        assert one.ContentDate == f"{MADE.astimezone():%Y%m%d}"


def test_the_report_says_what_the_bundle_said(manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom()
    results = scored(content, manifest, tmp_path)
    report = report_of(written(content, results, manifest))
    normal, pneumonia, rare = groups(report)
    assert [group.finding_type.value for group in (normal, pneumonia)] == ["17621005", "233604007"]
    assert (rare.finding_type.scheme_designator, rare.finding_type.meaning) == (PRIVATE, "Rare, thing")
    numbers = {one.name.meaning: one.value for one in pneumonia.get_measurements()}
    assert numbers == {
        "Probability": 0.6123,
        "Threshold Value": 0.5,
        "Distance from training data, of its threshold": 0.4124,
    }
    said = [(one.name.meaning, one.value.meaning) for one in pneumonia.get_qualitative_evaluations()]
    assert ("Has interpretation", "Uncertain") in said
    assert ("Cannot be ruled out", "Absent") in said
    assert ("Quality flag", "saturated") in said
    assert [
        one.value.meaning
        for group in (normal, rare)
        for one in group.get_qualitative_evaluations()
        if one.name.value == "363713009"
    ] == ["Positive", "Negative"]
    assert len({group.tracking_uid for group in (normal, pneumonia, rare)}) == 3
    dataset = dcmread(io.BytesIO(report))
    assert [dataset.VerificationFlag, dataset.CompletionFlag, dataset.PreliminaryFlag] == [
        *("UNVERIFIED", "COMPLETE", "PRELIMINARY")
    ]


def test_heatmaps_that_failed_their_checks_are_marked(manifest: Manifest, tmp_path: Path) -> None:
    doubtful = make_bundle(tmp_path / "bundle", LABELS, heatmap=make_support("pointing")).manifest
    caveat = "The heatmaps of this bundle failed checks (pointing): do not rely on them."
    content = make_dicom()
    for one, expected in ((doubtful, True), (manifest, False)):
        objects = written(content, scored(content, one, tmp_path), one)
        for kind in Kind:
            for dataset in of_kind(objects, kind):
                texts = [str(element.value) for element in dataset.iterall() if element.VR in ("LT", "ST", "UT")]
                assert any(caveat in text for text in texts) == expected, kind
                assert any("not for diagnosis" in text for text in texts)


def test_a_report_on_some_frames_is_partial_and_names_them(manifest: Manifest, tmp_path: Path) -> None:
    content = phantom(tmp_path / "phantom", "oct")
    results = scored(content, manifest, tmp_path)[1:3]
    objects = written(content, results, manifest)
    (report,) = of_kind(objects, Kind.SR)
    assert report.CompletionFlag == "PARTIAL"
    references = [one for group in groups(report_of(objects)) for one in group.source_images]
    sequences = [one.ReferencedSOPSequence[0] for one in references]
    assert [one.ReferencedFrameNumber for one in sequences] == [2, 2, 2, 3, 3, 3]
    assert {one.ReferencedSOPInstanceUID for one in sequences} == {results[0].key.sop_instance_uid}
    (capture,) = of_kind(objects, Kind.SC)
    assert capture.SourceImageSequence[0].ReferencedFrameNumber == 2


@pytest.mark.parametrize("fit", list(Fit))
def test_maps_hold_the_heatmap_on_the_frame(fit: Fit, tmp_path: Path) -> None:
    preprocessing = Preprocessing(size=32, fit=fit, exact_decoding=True)
    manifest = make_bundle(tmp_path / "bundle", LABELS, preprocessing=preprocessing).manifest
    content = phantom(tmp_path / "phantom", "oct")
    results = scored(content, manifest, tmp_path)
    frames = list(read_frames(StudyFile(tmp_path / "scored.dcm", "scored.dcm")))
    rows, columns = frames[0].shape
    maps = of_kind(written(content, results, manifest), Kind.PM)
    assert [one.NumberOfFrames for one in maps] == [len(frames)] * 2
    for label, one in enumerate(maps, 1):
        explained = [element.value for element in one.iterall() if element.keyword == "LUTExplanation"]
        assert explained == [f"grad-cam, exact evidence for {manifest.labels[label]}"]
        image = ReadImage.from_dataset(one)
        stored = image.get_frames(apply_real_world_transform=True, dtype=np.float64)
        for number, item in enumerate(one.PerFrameFunctionalGroupsSequence):
            source = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
            frame = frames[source - 1]
            box = placement(rows, columns, manifest.preprocessing, bright_height(frame.pixels, manifest.preprocessing))
            cells = np.asarray(np.round(values(source, label), 4), np.float32)
            expected = onto_frame(cells, box, 32, grid_shape(rows, columns))
            np.testing.assert_array_equal(stored[number], expected)


@pytest.mark.parametrize(
    ("method", "explained", "described"),
    [
        ("grad-cam", "grad-cam, exact evidence for PNEUMONIA", "exact evidence"),
        ("layercam", "layercam, evidence for PNEUMONIA", "evidence by layercam"),
    ],
)
def test_maps_and_pictures_say_what_their_values_are(method: str, explained: str, described: str, tmp_path: Path) -> None:
    heatmap = make_support(method=method)
    manifest = make_bundle(tmp_path / "bundle", heatmap=heatmap).manifest
    content = make_dicom()
    objects = written(content, scored(content, manifest, tmp_path), manifest)
    (parametric,), (capture,) = of_kind(objects, Kind.PM), of_kind(objects, Kind.SC)
    assert [element.value for element in parametric.iterall() if element.keyword == "LUTExplanation"] == [explained]
    assert parametric.ContentDescription == f"Heatmap of PNEUMONIA: {described}"
    assert f"with the heatmap of PNEUMONIA in colour: {described} from 0 to 2." in capture.DerivationDescription
    (window,) = (one for one in parametric.iterall() if one.keyword == "WindowWidth")
    (centre,) = (one for one in parametric.iterall() if one.keyword == "WindowCenter")
    assert (float(window.value), float(centre.value)) == (2.0, 1.0)  # as the colours of the pictures: from 0 to full scale
    report = dcmread(io.BytesIO(report_of(objects)))
    assert any(f"Heatmaps by {method} on a scale from 0 to 2." in str(one.value) for one in report.iterall())
    assert "logit" not in f"{parametric.SeriesDescription} {parametric.ContentDescription} {capture.DerivationDescription}"


def test_the_brightest_place_is_where_the_geometry_says(tmp_path: Path) -> None:
    """A heatmap as fine as the frame, so that its peak is one source pixel; the map is coarser by 3."""
    rows, columns, peak = 3 * LONGEST_SIDE - 3, 600, (301, 400)
    content = make_dicom(np.zeros((rows, columns), np.uint16), **ORIENTED)
    side = rows
    manifest = make_bundle(tmp_path / "b", LABELS, preprocessing=Preprocessing(size=side, exact_decoding=True)).manifest
    (one,) = scored(content, manifest, tmp_path)
    cells = np.zeros((side, side), np.float32)
    left = (side - columns) // 2
    cells[peak[0], left + peak[1]] = 1
    heatmaps = tuple(replace(heatmap, values=cells) for heatmap in one.heatmaps)
    results = (replace(one, heatmaps=heatmaps),)
    parametric = of_kind(written(content, results, manifest), Kind.PM)[0]
    shared, (frame,) = parametric.SharedFunctionalGroupsSequence[0], parametric.PerFrameFunctionalGroupsSequence
    spacing = np.asarray(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    axes = np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    origin = np.asarray(frame.PlanePositionSequence[0].ImagePositionPatient, float)
    pixels = np.frombuffer(parametric.FloatPixelData, np.float32).reshape(parametric.Rows, parametric.Columns)
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    found = origin + axes[0] * spacing[1] * column + axes[1] * spacing[0] * row
    true_axes = np.asarray(ORIENTED["ImageOrientationPatient"], float).reshape(2, 3)
    true = np.asarray([10, 20, 30]) + true_axes[0] * SPACING[1] * peak[1] + true_axes[1] * SPACING[0] * peak[0]
    assert parametric.FrameOfReferenceUID == "1.2.9"
    assert (parametric.Rows, parametric.Columns) == (LONGEST_SIDE - 1, columns // 3)
    np.testing.assert_allclose(found, true, atol=1e-9)


def test_frames_without_a_place_get_a_space_of_their_own(manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom(np.zeros((3, 32, 32), np.uint16))
    one, _ = of_kind(written(content, scored(content, manifest, tmp_path), manifest), Kind.PM)
    places = [list(item.PlanePositionSequence[0].ImagePositionPatient) for item in one.PerFrameFunctionalGroupsSequence]
    assert places == [[0, 0, 0], [0, 0, -1], [0, 0, -2]]
    assert one.FrameOfReferenceUID.startswith("2.25.")
    again = make_dicom(np.zeros((3, 32, 32), np.uint16))
    other, _ = of_kind(written(again, scored(again, manifest, tmp_path), manifest), Kind.PM)
    assert other.FrameOfReferenceUID != one.FrameOfReferenceUID
    assert other.SeriesInstanceUID != one.SeriesInstanceUID


@pytest.mark.parametrize(
    "odd",
    [
        {"PixelSpacing": [1e-300, 1e-300]},
        {"PixelSpacing": [0, 0]},
        {"ImagePositionPatient": [1e200, 0, 0]},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
    ],
)
def test_geometry_that_cannot_be_is_not_believed(odd: dict[str, Any], manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom(**(ORIENTED | odd))
    one, _ = of_kind(written(content, scored(content, manifest, tmp_path), manifest), Kind.PM)
    assert one.FrameOfReferenceUID.startswith("2.25.")
    measures = one.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert list(measures.PixelSpacing) == ([1, 1] if "PixelSpacing" in odd else list(SPACING))


def test_a_frame_without_evidence_has_a_map_of_zeros(manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom()
    (one,) = scored(content, manifest, tmp_path)
    heatmaps = tuple(replace(heatmap, values=heatmap.values * 0, has_positive_evidence=False) for heatmap in one.heatmaps)
    results = (replace(one, heatmaps=heatmaps),)
    for parametric in of_kind(written(content, results, manifest), Kind.PM):
        assert not np.frombuffer(parametric.FloatPixelData, np.float32).any()


@pytest.mark.parametrize("said", ["YES", "NO", None])
def test_pictures_are_the_callers_own(said: str | None, manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom(**({"BurnedInAnnotation": said} if said else {}))
    (capture,) = of_kind(written(content, scored(content, manifest, tmp_path), manifest), Kind.SC)
    np.testing.assert_array_equal(capture.pixel_array, np.asarray(Image.open(io.BytesIO(png()))))
    assert capture.get("BurnedInAnnotation") == said
    assert "Rare, thing" in capture.DerivationDescription


def test_lossy_compression_is_not_forgotten(manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom(LossyImageCompression="01", LossyImageCompressionRatio=10, LossyImageCompressionMethod="ISO_10918_1")
    objects = written(content, scored(content, manifest, tmp_path), manifest)
    for one in (*of_kind(objects, Kind.PM), *of_kind(objects, Kind.SC)):
        assert (one.LossyImageCompression, one.LossyImageCompressionRatio) == ("01", 10)


def test_only_the_kinds_that_were_asked_for_are_written(manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom()
    results = scored(content, manifest, tmp_path)
    for kind in Kind:
        names = [name for name, _ in write_objects(content, results, manifest, [kind], MADE, {(1, "PNEUMONIA"): png()})]
        assert names
        assert all(f"-{kind.value}" in name for name in names)


def test_what_is_not_dicom_gets_no_objects(manifest: Manifest, tmp_path: Path) -> None:
    results = scored(make_dicom(), manifest, tmp_path)
    assert list(write_objects(png(), results, manifest, tuple(Kind), MADE)) == []


def test_a_file_that_is_cut_off_is_refused_without_a_name(manifest: Manifest, tmp_path: Path) -> None:
    content = make_dicom()
    results = scored(content, manifest, tmp_path)
    with pytest.raises(UnreadableError) as error:
        list(write_objects(content[:-500], results, manifest, tuple(Kind), MADE))
    assert "Doe" not in str(error.value)


def test_every_known_label_has_a_code_that_fits() -> None:
    """Code Value is a Short String of 16 characters, Code Meaning a Long String of 64 (PS3.5 6.2)."""
    for label in ("NORMAL", "PNEUMONIA", "CNV", "DME", "DRUSEN", "x" * 100, "a\\b"):
        code = finding_code(label)
        assert len(code.value) <= 16
        assert len(code.meaning) <= 64
        assert "\\" not in code.value + code.meaning
    assert finding_code("CNV").scheme_designator == "SCT"


def test_real_radiograph(manifest: Manifest, tmp_path: Path) -> None:
    content = rg1()
    objects = written(content, scored(content, manifest, tmp_path), manifest)
    (report,) = of_kind(objects, Kind.SR)
    assert str(report.StudyInstanceUID) == dcmread(io.BytesIO(content)).StudyInstanceUID
    assert len(groups(report_of(objects))) == 3

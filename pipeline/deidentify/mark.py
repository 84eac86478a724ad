"""Writes into a de-identified data set that it is one, by which profile and options, and the file meta information."""

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from pipeline.deidentify.options import Keep, Options
from pipeline.deidentify.pixels import says_no_annotation
from pipeline.deidentify.table import edition
from pipeline.imaging.dicom.header import texts

PROFILE = ("113100", "Basic Application Confidentiality Profile")
CLEAN_PIXELS = ("113101", "Clean Pixel Data Option")


def mark(dataset: Dataset, options: Options, is_image: bool) -> None:
    """Set what PS3.15 E.1.1 and PS3.3 C.12.1.1, C.7.6.1 ask of a de-identified data set.

    Patient Identity Removed (0012,0062), De-identification Method (0012,0063) and its Code Sequence (0012,0064, CID 7050),
    Burned In Annotation (0028,0301) and Longitudinal Temporal Information Modified (0028,0303).
    """
    are_pixels_cleaned = is_image and bool(options.boxes or options.clean_pixels)
    codes = [PROFILE]
    codes += [CLEAN_PIXELS] if are_pixels_cleaned else []
    codes += [(one.code, one.meaning) for one in Keep if one in options.keep]
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = [f"octray: {edition()}", *(meaning[:64] for _, meaning in codes)]
    dataset.DeidentificationMethodCodeSequence = [_code(value, meaning) for value, meaning in codes]
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if Keep.DATES in options.keep else "REMOVED"
    if is_image:
        _mark_annotation(dataset, are_pixels_cleaned)


def _mark_annotation(dataset: Dataset, are_pixels_cleaned: bool) -> None:
    """Say that nothing is burned in only where pixels were cleaned, the file said so, or the image is an original one."""
    image_type = [text.strip().upper() for text in texts(dataset, "ImageType")[:2]]
    if are_pixels_cleaned or says_no_annotation(dataset) or image_type == ["ORIGINAL", "PRIMARY"]:
        dataset.BurnedInAnnotation = "NO"
    else:
        dataset.pop("BurnedInAnnotation", None)


def set_file_meta(dataset: Dataset, syntax: UID) -> None:
    """Replace the file meta information (PS3.10 7.1) and the preamble, of which nothing but the transfer syntax is kept."""
    dataset.preamble = bytes(128)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item

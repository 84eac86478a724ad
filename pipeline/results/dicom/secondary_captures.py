"""The picture of a frame beside itself with its heatmap, as Secondary Capture (PS3.3 A.8.1) in RGB."""

import hashlib
import io

import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from PIL import Image
from pydicom.dataset import Dataset

from pipeline.imaging.dicom import elements
from pipeline.results.dicom import Kind
from pipeline.results.dicom.source import Author, Source, describe_image, element, placeholder_image, to_file

_LONGEST_DESCRIPTION = 1024  # of ST (PS3.5 6.2)
_PURPOSE = CodedConcept("121322", "DCM", "Source image for image processing operation")


def write_secondary_capture(author: Author, frame_number: int, label: str, png: bytes) -> bytes:
    """Write one picture.

    Parameters
    ----------
    author
        What the object says of the bundle and the source.
    frame_number
        Which frame of the source it shows, from 1 on.
    label
        Whose heatmap it shows.
    png
        The picture as a PNG file.

    Returns
    -------
    bytes
        The DICOM file, uncompressed. Burned In Annotation (0028,0301) is copied from the source, if it has one: the text that
        octray adds identifies no patient.
    """
    source = author.source
    with Image.open(io.BytesIO(png)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    place = author.manifest.labels.index(label)
    number = ((source.instance_number - 1) * source.frames + frame_number - 1) * len(author.manifest.labels) + place + 1
    capture = SCImage.from_ref_dataset(
        placeholder_image(source),
        pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        **author.arguments(Kind.SC, number, frame_number, label, hashlib.sha256(png).hexdigest()),
    )
    capture.add(element("PatientOrientation", ""))  # highdicom requires one, but the picture shows the frame twice
    description = (
        f"Frame {frame_number} of the source image beside itself with the heatmap of {label} in colour: "
        f"{author.manifest.heatmap.meaning} from 0 to {author.manifest.heatmap.full_scale:g}. {author.warning}"
    )
    capture.DerivationDescription = description[:_LONGEST_DESCRIPTION]
    describe_image(capture, author)
    capture.SourceImageSequence = [_reference(source, frame_number)]
    if (burned_in := elements.code(source.dataset, "BurnedInAnnotation")) in ("YES", "NO"):
        capture.BurnedInAnnotation = burned_in
    return to_file(capture, author)


def _reference(source: Source, frame_number: int) -> Dataset:
    image, reference = placeholder_image(source, frame_number), Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [_PURPOSE]
    return reference

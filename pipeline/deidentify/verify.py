"""The verifier: reads a new file again and searches it for anything identifying, by a list of its own instead of the table."""

import io
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal
from functools import cache

from pydicom import dcmread
from pydicom.datadict import dictionary_has_tag, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.deidentify.identifiers import IDENTIFIERS, Identity, TagPath, texts_of, walk
from pipeline.deidentify.profile import Keep, Options, RefusalReason, RefusedError
from pipeline.deidentify.search import PLACEHOLDERS, Search, is_defined_term, number_of
from pipeline.deidentify.values import NUMERIC, code_meanings, is_registered
from pipeline.imaging.dicom.elements import numbers, whole_number

_META_TAGS = frozenset({0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013})
_WORDS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_DIGITS = frozenset({"DS", "IS", "AS", "DA", "DT", "TM", "UI"})
_OLDEST = 90
_LONG_UID = 6
_METHOD = frozenset({0x00120063, 0x00120064})
"""De-identification Method and its codes, which only octray writes."""
_CODED = frozenset({"CodeMeaning", "CodeValue", "CodingSchemeDesignator"})
_DESCRIPTIONS = frozenset({"AdditionalPatientHistory", "Occupation", "PatientComments", "RequestingService", "VisitComments"})
"""Identifying attributes in which safe words may stay with `Keep.DESCRIPTORS`."""
_PSEUDONYM = re.compile(r"P[0-9A-F]{15}")
"""What `Secret.pseudonym` gives; another patient, in an item, has a pseudonym of its own."""


def verify(content: bytes, identity: Identity, pseudonym: str, options: Options, allowed: frozenset[int] = frozenset()) -> None:
    """Search a file before it is written.

    Parameters
    ----------
    content
        All its bytes.
    identity
        What identifies the patient in the original.
    pseudonym
        The patient's pseudonym.
    options
        What the user asked to keep.
    allowed
        Tags of attributes that are not searched, since a person has checked them.

    Raises
    ------
    RefusedError
        `IDENTITY_LEFT`, with the tags of the attributes in which something was found.
    """
    dataset = dcmread(io.BytesIO(content))
    found = [*_forbidden_content(dataset, pseudonym, options)]
    repeated = [_tag_text(element.tag) for element, _ in repeated_identity(dataset, identity, options, allowed)]
    if not found and repeated:
        raise RefusedError(
            RefusalReason.IDENTITY_LEFT,
            f"A value in {', '.join(dict.fromkeys(repeated))} repeats an identifier or a date of the file and cannot be "
            "replaced safely. Look at the file; if it is a coincidence, add --allow SHA256:ATTRIBUTE (the hash is in the "
            "crosswalk).",
        )
    if not found and _is_in_bytes(content, dataset, identity, options):
        found = ["the bytes of the file"]
    if found:
        raise RefusedError(
            RefusalReason.IDENTITY_LEFT,
            f"Something identifying would remain in {', '.join(dict.fromkeys(found))}. Please report it as a fault of octray.",
        )


def _forbidden_content(dataset: Dataset, pseudonym: str, options: Options) -> Iterator[str]:
    """Yield the places of anything that no de-identified file may contain."""
    allowed = PLACEHOLDERS | {pseudonym}
    yield from (_tag_text(tag) for tag in list(dataset.file_meta.keys()) if int(tag) not in _META_TAGS)
    if dataset.preamble != bytes(128):
        yield "the preamble"
    if dataset.get("PatientIdentityRemoved") != "YES" or dataset.get("PatientID") != pseudonym:
        yield "Patient ID"
    for path, _, element in walk(dataset):
        tags = [BaseTag(tag) for tag in path if tag > 0xFFFF]
        texts = set(texts_of(element))
        has_old_uid = element.VR == "UI" and Keep.UIDS not in options.keep and not all(map(_is_new_uid, texts))
        if any(_is_forbidden(tag) for tag in tags) or element.VR == "UN" or has_old_uid:
            yield _tag_text(element.tag)
        if element.VR == "AS" and any(text[-1] == "Y" and text[:-1].isdecimal() and int(text[:-1]) > _OLDEST for text in texts):
            yield _tag_text(element.tag)
        is_description = element.keyword in _DESCRIPTIONS and Keep.DESCRIPTORS in options.keep
        is_identifying = element.VR in ("PN", "AE") or (element.keyword in IDENTIFIERS and not is_description)
        is_date = element.VR in ("DA", "DT") and (Keep.DATES not in options.keep or element.keyword == "PatientBirthDate")
        is_pseudonym = element.keyword == "PatientID" and all(map(_PSEUDONYM.fullmatch, texts))
        if (is_identifying and not is_pseudonym and not texts <= allowed) or (is_date and not texts <= allowed):
            yield _tag_text(element.tag)


def _is_forbidden(tag: BaseTag) -> bool:
    return tag.is_private or tag.element == 0 or tag.group >> 8 in (0x50, 0x60)


def _is_new_uid(uid: str) -> bool:
    """Return whether the Standard registers a UID, or it is in the arc of the new ones (PS3.5 B.2)."""
    return is_registered(uid) or uid.startswith("2.25.")


# What is repeated in values


def repeated_identity(
    dataset: Dataset, identity: Identity, options: Options, allowed: frozenset[int] = frozenset()
) -> Iterator[tuple[DataElement, str]]:
    """Yield the elements in which something identifying of the original is found again, each with the text that has it.

    Values that the file or the Standard forces do not count: an image's size, its bits and tables, registered codes. Neither
    does what a pseudonym contains, such as the letters of a short name, which its random digits happen to spell: it must only
    not be an identifier or a name as a whole.
    """
    uids = frozenset() if Keep.UIDS in options.keep else identity.uids
    search = Search(identity.names, identity.identifiers | uids, identity.days)
    forced = forced_numbers(dataset)
    for path, item, element in walk(dataset):
        if path[0] in _METHOD or element.keyword in FORCED_NUMBERS or int(element.tag) in allowed or _is_coded(item, element):
            continue
        for text in texts_of(element):
            if (element.VR == "UI" and text in uids) or _is_repeated(path, element, text, identity, search, forced):
                yield element, text


def _is_repeated(
    path: TagPath, element: DataElement, text: str, identity: Identity, search: Search, forced: frozenset[Decimal]
) -> bool:
    representation = str(element.VR)
    if text in PLACEHOLDERS or (representation == "CS" and is_defined_term(text)):
        return False
    if element.keyword in ("PatientID", "PatientName") and _PSEUDONYM.fullmatch(text):
        return text in identity.identifiers | identity.names
    if representation == "UI":
        return not is_registered(text) and not identity.patient_identifiers.isdisjoint(text.split("."))
    if representation in ("DA", "DT", "TM", "AS"):
        return (path, text) in identity.dated_elements or search.is_identifier(text.replace(":", ""))
    if representation in NUMERIC:
        is_found = search.is_identifier(text) or search.is_day(text)
        return is_found and (is_free_number(element.tag) or number_of(text) not in forced)
    is_short = representation in _WORDS - {"CS"} and text.upper() in identity.short_identifiers
    return is_short or search.finds_identifier(text) or (representation in _WORDS and search.finds_name(text))


def _is_coded(item: Dataset, element: DataElement) -> bool:
    """Return whether an element is the character set, or text of a coded entry that a dictionary of codes has (PS3.3 8.8)."""
    if element.keyword == "SpecificCharacterSet":
        return True
    if element.keyword not in _CODED:
        return False
    scheme = str(item.get("CodingSchemeDesignator") or "").strip()
    meanings = code_meanings(scheme, str(item.get("CodeValue") or "").strip())
    return bool(meanings) and (
        element.keyword != "CodeMeaning" or str(element.value).lower() in {one.lower() for one in meanings}
    )


# What is repeated in bytes


def _is_in_bytes(content: bytes, dataset: Dataset, identity: Identity, options: Options) -> bool:
    """Return whether longer texts occur in the bytes of a file more often than in the texts of its elements."""
    searched = content
    if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        start = 132 + 12 + dataset.file_meta.FileMetaInformationGroupLength
        searched += zlib.decompress(content[start:], -zlib.MAX_WBITS)
    searched = searched.upper()
    uids = set() if Keep.UIDS in options.keep else {uid.encode() for uid in identity.uids if len(uid) >= _LONG_UID}
    elements = [*dataset.file_meta, *(element for _, _, element in walk(dataset))]
    texts = [text for element in elements if element.VR in _WORDS | _DIGITS for text in texts_of(element)]
    known = "\n".join(texts).upper().encode("utf-8", "replace")
    return any(_count(text, searched) > _count(text, known) for text in identity.byte_strings | uids)


def _count(text: bytes, searched: bytes) -> int:
    """Count the occurrences of a text; digits count only if no others follow or precede them, since new UIDs have many."""
    if not re.fullmatch(rb"[\d.]+", text) or text not in searched:
        return searched.count(text)
    return len(re.findall(rb"(?<![\w.])" + re.escape(text) + rb"(?![\w.])", searched))


def _tag_text(tag: BaseTag) -> str:
    return f"({tag.group:04x},{tag.element:04x})"


# Numbers: forced ones are never searched, free ones may become 0, and the image needs all others as they are

_LUT_DESCRIPTORS = frozenset(
    {
        "BlendingLookupTableDescriptor",
        "GrayLookupTableDescriptor",
        "LUTDescriptor",
        *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Alpha", "Blue", "Green", "Red")),
        *(f"Large{colour}PaletteColorLookupTableDescriptor" for colour in ("Blue", "Green", "Red")),
    }
)
_PIXEL_NUMBERS = frozenset(
    {
        "BitsAllocated",
        "BitsStored",
        "Columns",
        "DoubleFloatPixelPaddingRangeLimit",
        "DoubleFloatPixelPaddingValue",
        "FloatPixelPaddingRangeLimit",
        "FloatPixelPaddingValue",
        "HighBit",
        "LargestImagePixelValue",
        "LargestImagePixelValueInPlane",
        "LargestMonochromePixelValue",
        "LargestPixelValueInSeries",
        "LargestValidPixelValue",
        "NumberOfFrames",
        "PixelPaddingRangeLimit",
        "PixelPaddingValue",
        "Rows",
        "SamplesPerPixel",
        "SamplesPerPixelUsed",
        "SmallestImagePixelValue",
        "SmallestImagePixelValueInPlane",
        "SmallestPixelValueInSeries",
        "SmallestValidPixelValue",
        "TotalPixelMatrixColumns",
        "TotalPixelMatrixFocalPlanes",
        "TotalPixelMatrixRows",
    }
)
FORCED_NUMBERS = (
    _LUT_DESCRIPTORS
    | _PIXEL_NUMBERS
    | {
        "ALinesPerFrame",
        "AngularViewVector",
        "BitsMappedToColorLookupTable",
        "ColumnPositionInTotalImagePixelMatrix",
        "ConcatenationFrameOffsetNumber",
        "DataPointColumns",
        "DataPointRows",
        "DetectorVector",
        "DimensionIndexPointer",
        "DimensionIndexValues",
        "DisplayedAreaBottomRightHandCorner",
        "DisplayedAreaTopLeftHandCorner",
        "DoubleFloatRealWorldValueFirstValueMapped",
        "DoubleFloatRealWorldValueLastValueMapped",
        "EncapsulatedPixelDataValueTotalLength",
        "EnergyWindowVector",
        "FrameDimensionPointer",
        "FrameIncrementPointer",
        "FrameNumbersOfInterest",
        "FunctionalGroupPointer",
        "GraphicDimensions",
        "HistogramNumberOfBins",
        "ImageDimensions",
        "InConcatenationNumber",
        "InConcatenationTotalNumber",
        "InStackPositionNumber",
        "MaximumFractionalValue",
        "MaximumStoredValueMapped",
        "MinimumStoredValueMapped",
        "NumberOfBeams",
        "NumberOfBlocks",
        "NumberOfBoli",
        "NumberOfBrachyApplicationSetups",
        "NumberOfCompensators",
        "NumberOfContourPoints",
        "NumberOfControlPoints",
        "NumberOfDetectors",
        "NumberOfEnergyWindows",
        "NumberOfFocalPlanes",
        "NumberOfFramesInPhase",
        "NumberOfFramesInRotation",
        "NumberOfGraphicPoints",
        "NumberOfOpticalPaths",
        "NumberOfPhases",
        "NumberOfRRIntervals",
        "NumberOfRotations",
        "NumberOfSlices",
        "NumberOfSurfacePoints",
        "NumberOfSurfaces",
        "NumberOfTableBreakPoints",
        "NumberOfTableColumns",
        "NumberOfTableEntries",
        "NumberOfTableRows",
        "NumberOfTimeSlices",
        "NumberOfTimeSlots",
        "NumberOfWedges",
        "PhaseVector",
        "PixelRepresentation",
        "PlanarConfiguration",
        "RRIntervalVector",
        "RealWorldValueFirstValueMapped",
        "RealWorldValueLastValueMapped",
        "ReferencedContentItemIdentifier",
        "ReferencedFrameNumber",
        "ReferencedFrameNumbers",
        "ReferencedSegmentNumber",
        "RepresentativeFrameNumber",
        "RotationVector",
        "RowPositionInTotalImagePixelMatrix",
        "SegmentNumber",
        "SelectorAttribute",
        "SimpleFrameList",
        "SliceVector",
        "TemporalPositionIndex",
        "TimeSliceVector",
        "TimeSlotVector",
    }
)
"""Attributes whose number follows from the pixels, from other parts of the file or from the Standard (PS3.3 C.7.6, C.8)."""
_NEEDED_NUMBERS = frozenset(
    {
        "DecayFactor",
        "DiffusionBValue",
        "DoseCalibrationFactor",
        "FloatingPointValue",
        "FrameTime",
        "FrameTimeVector",
        "ImageOrientation",
        "ImageOrientationPatient",
        "ImageOrientationVolume",
        "ImagePosition",
        "ImagePositionPatient",
        "ImagePositionVolume",
        "ImagerPixelSpacing",
        "NominalScannedPixelSpacing",
        "NumericValue",
        "ObjectPixelSpacingInCenterOfBeam",
        "PhysicalDeltaX",
        "PhysicalDeltaY",
        "PhysicalUnitsXDirection",
        "PhysicalUnitsYDirection",
        "PixelComponentDataType",
        "PixelComponentMask",
        "PixelComponentOrganization",
        "PixelComponentPhysicalUnits",
        "PixelComponentRangeStart",
        "PixelComponentRangeStop",
        "RadionuclideHalfLife",
        "RadionuclideTotalDose",
        "RationalDenominatorValue",
        "RationalNumeratorValue",
        "RealWorldValueIntercept",
        "RealWorldValueLUTData",
        "RealWorldValueSlope",
        "ReconstructionPixelSpacing",
        "ReferencePixelPhysicalValueX",
        "ReferencePixelPhysicalValueY",
        "ReferencePixelX0",
        "ReferencePixelY0",
        "RegionDataType",
        "RegionFlags",
        "RegionLocationMaxX1",
        "RegionLocationMaxY1",
        "RegionLocationMinX0",
        "RegionLocationMinY0",
        "RegionSpatialFormat",
        "ShutterLeftVerticalEdge",
        "ShutterLowerHorizontalEdge",
        "ShutterPresentationValue",
        "ShutterRightVerticalEdge",
        "ShutterUpperHorizontalEdge",
        "CenterOfCircularShutter",
        "RadiusOfCircularShutter",
        "VerticesOfThePolygonalShutter",
        "SliceSensitivityFactor",
        "SliceThickness",
        "SpacingBetweenSlices",
        "TableOfParameterValues",
        "TableOfPixelValues",
        "TableOfXBreakPoints",
        "TableOfYBreakPoints",
        "VolumeToTableMappingMatrix",
        "VolumeToTransducerMappingMatrix",
        "ZeroVelocityPixelValue",
    }
)
"""Numbers of the groups below without which pixels are shown, placed or measured wrongly; 0 would be a false statement."""
_ACQUISITION = frozenset({0x0008, 0x0010, 0x0012, 0x0016, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040, 0x0050, 0x0052, 0x0054})
"""Groups with numbers about patient, study and acquisition; those of other groups tell what pixels, plans and displays mean."""


@cache
def is_free_number(tag: int) -> bool:
    """Return whether a number may become 0: the object stays valid, and nothing in it refers to the number."""
    if not dictionary_has_tag(tag):
        return False
    keyword = keyword_for_tag(tag)
    is_link = keyword.startswith("Referenced") or tag_for_keyword(f"Referenced{keyword}") is not None
    is_needed = keyword in _NEEDED_NUMBERS or keyword in FORCED_NUMBERS or is_link
    return keyword == "LossyImageCompressionRatio" or (BaseTag(tag).group in _ACQUISITION and not is_needed)


def forced_numbers(dataset: Dataset) -> frozenset[Decimal]:
    """Return the numbers that an image always contains: its size, its bits, its tables, and their ranges.

    A window over all values of 12 bits has the width 4096, and a shutter ends one pixel behind the last column.
    """
    found = {Decimal(str(one)) for keyword in _PIXEL_NUMBERS | _LUT_DESCRIPTORS for one in numbers(dataset, keyword)}
    found |= {Decimal(number + 1) for keyword in ("Rows", "Columns") if (number := whole_number(dataset, keyword))}
    bits = {whole_number(dataset, keyword) for keyword in ("BitsAllocated", "BitsStored")}
    for power in {2 ** (number + less) for number in bits if number and 0 < number <= 64 for less in (0, -1)}:
        found |= {Decimal(power), Decimal(power - 1), Decimal(power) - Decimal("0.5")}
    return frozenset(found)

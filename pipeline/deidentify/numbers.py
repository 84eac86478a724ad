"""Says which attributes hold numbers that are forced, which may be replaced, and which an image needs as they are."""

from decimal import Decimal
from functools import cache

from pydicom.datadict import dictionary_has_tag, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from pipeline.imaging.dicom.header import numbers, whole_number

NUMBERS = frozenset({"AT", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
"""Value representations that hold numbers."""
_DESCRIPTORS = frozenset(
    {
        "BlendingLookupTableDescriptor",
        "GrayLookupTableDescriptor",
        "LUTDescriptor",
        *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Alpha", "Blue", "Green", "Red")),
        *(f"Large{colour}PaletteColorLookupTableDescriptor" for colour in ("Blue", "Green", "Red")),
    }
)
_OF_PIXELS = frozenset(
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
FORCED = (
    _DESCRIPTORS
    | _OF_PIXELS
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
"""Attributes whose number follows from the pixels, from other parts of the file, or from the Standard (PS3.3 C.7.6, C.8)."""
_NEEDED = frozenset(
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
"""Numbers in the groups below without which pixels are shown, placed or measured wrongly; 0 would be a false statement."""
_OF_ACQUISITION = frozenset({0x0008, 0x0010, 0x0012, 0x0016, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040, 0x0050, 0x0052, 0x0054})
"""Groups of numbers about patient, study and acquisition; those of others say what pixels, plans and presentations mean."""


@cache
def is_free(tag: int) -> bool:
    """Say whether a number may become 0 without harm: the object stays valid, and nothing in it refers to the number."""
    if not dictionary_has_tag(tag):
        return False
    keyword = keyword_for_tag(tag)
    is_link = keyword.startswith("Referenced") or tag_for_keyword(f"Referenced{keyword}") is not None
    is_needed = keyword in _NEEDED or keyword in FORCED or is_link
    return keyword == "LossyImageCompressionRatio" or (BaseTag(tag).group in _OF_ACQUISITION and not is_needed)


def forced_numbers(dataset: Dataset) -> frozenset[Decimal]:
    """Return the numbers that are in an image whatever is chosen: its size, its bits, its tables, and the ranges of these.

    A window over all values of 12 bits has the width 4096, and a shutter ends one pixel behind the last column.
    """
    found = {Decimal(str(one)) for keyword in _OF_PIXELS | _DESCRIPTORS for one in numbers(dataset, keyword)}
    found |= {Decimal(number + 1) for keyword in ("Rows", "Columns") if (number := whole_number(dataset, keyword))}
    bits = {whole_number(dataset, keyword) for keyword in ("BitsAllocated", "BitsStored")}
    for power in {2 ** (number + less) for number in bits if number and 0 < number <= 64 for less in (0, -1)}:
        found |= {Decimal(power), Decimal(power - 1), Decimal(power) - Decimal("0.5")}
    return frozenset(found)

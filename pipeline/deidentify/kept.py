"""Names the attributes that the Standard's table does not list and that images need; other text and bytes do not stay."""

CODE_TEXT = frozenset({"CodeMeaning", "CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "LongCodeValue"})
"""Text of coded entries (PS3.3 8.8), which is held against the dictionaries of codes."""
TEXT_OF_IMAGES = CODE_TEXT | {
    "AttenuationCorrectionMethod",
    "CollimatorGridName",
    "ConvolutionKernel",
    "FilterType",
    "ImageFilter",
    "ImagedNucleus",
    "LUTExplanation",
    "Manufacturer",
    "ManufacturerModelName",
    "ModalityLUTType",
    "PixelSpacingCalibrationDescription",
    "PulseSequenceName",
    "ReceiveCoilName",
    "ReconstructionMethod",
    "RescaleType",
    "ScatterCorrectionMethod",
    "SecondaryCaptureDeviceManufacturer",
    "SecondaryCaptureDeviceManufacturerModelName",
    "SequenceName",
    "SoftwareVersions",
    "StackID",
    "TransmitCoilName",
    "WindowCenterWidthExplanation",
}
"""Text about devices, techniques and grey levels."""
PIXELS = frozenset({"DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "FloatPixelData", "PixelData"})
"""Bytes that are an image's own only outside of all sequences."""
TABLES = frozenset(
    {
        "AlphaPaletteColorLookupTableData",
        "BluePaletteColorLookupTableData",
        "GreenPaletteColorLookupTableData",
        "LUTData",
        "RedPaletteColorLookupTableData",
        "SegmentedAlphaPaletteColorLookupTableData",
        "SegmentedBluePaletteColorLookupTableData",
        "SegmentedGreenPaletteColorLookupTableData",
        "SegmentedRedPaletteColorLookupTableData",
    }
)
"""Bytes of tables from stored values to grey levels and colours."""
ESSENTIAL = frozenset({"PointCoordinatesData", "SpectroscopyData", "WaveformData"})
"""Bytes that are not kept, and without which an object says nothing."""

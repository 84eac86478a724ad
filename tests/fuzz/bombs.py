"""Small files that ask for much: every function returns the bytes of one; nothing in them comes from a real file."""

import io
import struct
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
from PIL import Image
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from tests.builders import make_dataset, make_dicom, make_encapsulated

SMALL = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
PIXEL_DATA = b"\xe0\x7f\x10\x00"
_UNDEFINED = b"\xff\xff\xff\xff"


def j2k(rows: int, columns: int, small: int = 64) -> bytes:
    """A JPEG 2000 codestream of small pixels whose SIZ says another size, in one tile."""
    codestream = bytearray(imagecodecs.jpeg2k_encode(SMALL[:small, :small], codecformat="J2K", level=0))
    siz = codestream.index(b"\xff\x51")
    for at, value in ((6, columns), (10, rows), (22, columns), (26, rows)):
        codestream[siz + at : siz + at + 4] = struct.pack(">L", value)
    return bytes(codestream)


def j2k_of_tiny_precincts(side: int) -> bytes:
    """A JPEG 2000 codestream with a precinct for each pixel, and as many layers as can be said."""
    whole = j2k(side, side)
    cod = whole.index(b"\xff\x52")
    style = b"\x01" + b"\x00\xff\xff\x00" + whole[cod + 9 : cod + 14] + b"\x00"
    end = cod + 2 + int.from_bytes(whole[cod + 2 : cod + 4], "big")
    return whole[:cod] + b"\xff\x52" + struct.pack(">H", len(style) + 2) + style + whole[end:]


def jpeg(rows: int, columns: int, progressive: bool = False) -> bytes:
    """A JPEG of 64 x 64 pixels whose frame header says another size."""
    buffer = io.BytesIO()
    Image.fromarray(SMALL).save(buffer, "JPEG", progressive=progressive)
    content = bytearray(buffer.getvalue())
    sof = content.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    content[sof + 5 : sof + 9] = struct.pack(">HH", rows, columns)
    return bytes(content)


def jpeg_of_many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG, each of whose scans makes the decoder look at all pixels again."""
    content = jpeg(side, side, progressive=True)
    scan = content.rindex(b"\xff\xda")
    last = content[scan : content.rindex(b"\xff\xd9")]
    return content[:-2] + last * scans + b"\xff\xd9"


def encapsulated(codestream: bytes, syntax: str, **overrides: object) -> bytes:
    """A DICOM file that says 64 x 64 pixels, unless told otherwise, around any codestream."""
    return make_encapsulated(SMALL, syntax, [[codestream]], **overrides)


def rle_frame(*lengths: int) -> bytes:
    """A frame in RLE of segments that each repeat one byte."""
    header = struct.pack(
        "<16L", len(lengths), *(64 + sum(lengths[:at]) for at in range(len(lengths))), *[0] * (15 - len(lengths))
    )
    return header + b"".join(b"\x81\x00" * (length // 2) for length in lengths)


def deflated(zeros: int) -> bytes:
    """A deflated DICOM file of many zeros in a private element, in front of a small picture."""
    dataset = make_dataset(SMALL)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    whole = buffer.getvalue()
    start = 132 + 12 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(b"\x09\x00\x10\x10OB\0\0" + struct.pack("<L", zeros))
    for _ in range(zeros // 2**20):
        packed += packer.compress(bytes(2**20))
    return whole[:start] + packed + packer.flush()


def before_pixels(elements: bytes, **overrides: object) -> bytes:
    """A DICOM file in explicit little endian with raw elements in front of its Pixel Data."""
    whole = make_dicom(SMALL, **overrides)
    at = whole.index(PIXEL_DATA)
    return whole[:at] + elements + whole[at:]


def nested_sequences(depth: int, whole: bool = True) -> bytes:
    """Sequences of undefined length within each other; the pixels come after them."""
    sequence = b"\x40\x00\x75\x02SQ\0\0" + _UNDEFINED + b"\xfe\xff\x00\xe0" + _UNDEFINED
    ends = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return before_pixels(sequence * depth + (ends * depth if whole else b""))


def nested_in_an_item(depth: int) -> bytes:
    """Sequences of known length within each other, in one that is read for its window."""
    inner = b""
    for _ in range(depth):
        item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
        inner = b"\x28\x00\x10\x30SQ\0\0" + struct.pack("<L", len(item)) + item
    return before_pixels(inner)


def endless_items(count: int) -> bytes:
    """A sequence of undefined length with many items that nothing ends."""
    return before_pixels(b"\x28\x00\x10\x30SQ\0\0" + _UNDEFINED + (b"\xfe\xff\x00\xe0" + _UNDEFINED) * count)


def many_fragments(count: int) -> bytes:
    """Compressed pixel data of many empty fragments."""
    return encapsulated(b"", RLELossless, PixelData=b"\xfe\xff\x00\xe0\0\0\0\0" * count)


def long_value(keyword: str, value: bytes) -> bytes:
    """A file in implicit little endian, whose elements of text may be as long as the file."""
    dataset = make_dataset(SMALL)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    tag = tag_for_keyword(keyword)
    assert tag is not None
    dataset.add(DataElement(tag, "UN", value))
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def enormous_length(vr: bytes) -> bytes:
    """An element of nearly 4 GiB in a small file."""
    return before_pixels(b"\x09\x00\x10\x10" + vr + b"\0\0\xfe\xff\xff\xff")


def huge_lut(entries: int) -> bytes:
    """A VOI LUT with a table far longer than its descriptor can say."""
    table = Dataset()
    table.LUTDescriptor = [0, 0, 16]
    table.add(DataElement(0x00283006, "OW", bytes(2 * entries)))
    return make_dicom(SMALL, VOILUTSequence=[table])


def huge_palette(segments: int) -> bytes:
    """A segmented palette whose indirect segments repeat one that repeats."""
    words = [0, 1, 0, 1, 0xFFFF, 0xFFFF] + [2, 0xFFFF, 0, 0] * segments
    data = struct.pack(f"<{len(words)}H", *words)
    values = {}
    for colour in ("Red", "Green", "Blue"):
        values[f"{colour}PaletteColorLookupTableDescriptor"] = [0, 0, 16]
        values[f"Segmented{colour}PaletteColorLookupTableData"] = data
    return make_dicom(SMALL, PhotometricInterpretation="PALETTE COLOR", **values)


def png(rows: int, columns: int, data: bytes = b"", chunks: bytes = b"") -> bytes:
    """A PNG of 8 bits; `data` are the rows, each after its filter."""
    header = png_chunk(b"IHDR", struct.pack(">LLBBBBB", columns, rows, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its checksum."""
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def tiff_pages(count: int) -> bytes:
    """A TIFF file of many pages, each of which is almost nothing."""
    entries = ((256, 3, 1, 1), (257, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 1))
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    size = len(body) + 4
    return b"II*\0\x08\0\0\0" + b"".join(
        body + struct.pack("<L", 8 + (number + 1) * size if number + 1 < count else 0) for number in range(count)
    )


def tiff_ring(count: int, back_to: int) -> bytes:
    """A TIFF file whose last page names an earlier one as the next."""
    content = bytearray(tiff_pages(count))
    size = (len(content) - 8) // count
    content[-4:] = struct.pack("<L", 8 + back_to * size)
    return bytes(content)


def tiff_page(rows: int, columns: int, data: bytes, **tags: tuple[int, ...] | int) -> bytes:
    """A TIFF file of one page of 8 bits; tags are given as `_NUMBER=value` or values, and are numbers of 32 bits."""
    values: dict[int, tuple[int, ...]] = {
        256: (columns,),
        257: (rows,),
        258: (8,),
        259: (1,),
        262: (1,),
        277: (1,),
        278: (rows,),
    }
    values |= {273: (8,), 279: (len(data),)}
    for name, value in tags.items():
        values[int(name[1:])] = value if isinstance(value, tuple) else (value,)
    if 324 in values:
        values = {number: value for number, value in values.items() if number not in (273, 278, 279)}
    at = 8 + len(data)
    entries, extra = b"", b""
    end = at + 2 + 12 * len(values) + 4
    for number, value in sorted(values.items()):
        packed = struct.pack(f"<{len(value)}L", *value)
        where = packed if len(value) == 1 else struct.pack("<L", end + len(extra))
        extra += packed if len(value) > 1 else b""
        entries += struct.pack("<HHL", number, 4, len(value)) + where
    return b"II*\0" + struct.pack("<L", at) + data + struct.pack("<H", len(values)) + entries + bytes(4) + extra


def vol(rows: int, columns: int, scans: int) -> bytes:
    """The header of a `.vol` file."""
    fields = (b"HSF-OCT-103", columns, scans, rows, 0.01, 0.1, 0.004, 768, 768, 0.01, 0.01, 30, 0.0, b"OD", 1, 0, 256)
    return struct.pack("<12s3I3d2I2dId4sQiI", *fields).ljust(2**14, b"\0")


def e2e(directories: int, entries: int, every: int) -> bytes:
    """Directories that lie within each other, so that each lists what all after it list."""
    start = 36 + 52
    size = start + every * directories + 44 * entries + 100
    content = bytearray(size)
    content[:5] = b"CMDb\0"
    last = start + every * (directories - 1)
    struct.pack_into("<36x4I", content, 36, 0, last, 0, 0)
    for number in range(directories):
        at = start + every * number
        previous = at - every if number else 0
        struct.pack_into("<4I", content, at + 36, entries, 0, previous, 0)
    return bytes(content)


def fds(width: int, height: int, scans: int) -> bytes:
    """A Topcon file with the header of one block."""
    block = struct.pack("<B4IBI", 2, width, height, 16, scans, 0, 0) + bytes(64)
    return b"FOCT" + b"FDS" + struct.pack("<2I", 2, 1000) + b"\x0c@IMG_SCAN_03" + struct.pack("<L", len(block)) + block + b"\0"


BOMBS: dict[str, Callable[[], bytes]] = {
    "j2k whose SIZ says 65536": lambda: encapsulated(j2k(2**16, 2**16), JPEG2000Lossless),
    "j2k 8192 that holds 64": lambda: encapsulated(j2k(2**13, 2**13), JPEG2000Lossless, Rows=2**13, Columns=2**13),
    "j2k of a precinct for each of 8192 pixels": lambda: encapsulated(
        j2k_of_tiny_precincts(2**13), JPEG2000Lossless, Rows=2**13, Columns=2**13
    ),
    "jpeg whose SOF says 65500": lambda: encapsulated(jpeg(65500, 65500), JPEGBaseline8Bit),
    "jpeg 8192 that holds 64": lambda: encapsulated(jpeg(2**13, 2**13), JPEGBaseline8Bit, Rows=2**13, Columns=2**13),
    "jpeg picture of 65500": lambda: jpeg(65500, 65500),
    "jpeg picture of many scans": lambda: jpeg_of_many_scans(8000, 3000),
    "rle of a frame of 65535": lambda: encapsulated(rle_frame(64), RLELossless, Rows=65535, Columns=65535),
    "rle of a frame of 8192": lambda: encapsulated(rle_frame(64), RLELossless, Rows=2**13, Columns=2**13),
    "rle that unpacks to more": lambda: encapsulated(rle_frame(2**24), RLELossless),
    "deflated, 1 GiB": lambda: deflated(2**30),
    "deflated, just within the limit": lambda: deflated(2**29 - 2**16),
    "frames, a billion": lambda: make_dicom(SMALL, NumberOfFrames=10**9),
    "frames, a billion, compressed": lambda: encapsulated(rle_frame(64), RLELossless, NumberOfFrames=10**9),
    "frames of one pixel, many": lambda: encapsulated(rle_frame(64), RLELossless, NumberOfFrames=2**29, Rows=1, Columns=1),
    "sequences, 10,000 deep": lambda: nested_sequences(10_000),
    "sequences, 10,000 deep, without end": lambda: nested_sequences(10_000, whole=False),
    "sequences of known length, 500 deep": lambda: nested_in_an_item(500),
    "sequences of known length, 5,000 deep": lambda: nested_in_an_item(5_000),
    "pixel data of 5 million fragments": lambda: many_fragments(5_000_000),
    "window of 10 million numbers": lambda: long_value("WindowCenter", b"1\\" * 10_000_000),
    "frames of many digits": lambda: long_value("NumberOfFrames", b"1" * 10_000_000),
    "rows of 10 million numbers": lambda: long_value("PixelSpacing", b"1\\" * 10_000_000),
    "rescale of many digits": lambda: long_value("RescaleSlope", b"1" * 10_000_000),
    "modality of 10 million values": lambda: long_value("ViewPosition", b"A\\" * 10_000_000),
    "uid of 10 million values": lambda: long_value("SeriesInstanceUID", b"1\\" * 10_000_000),
    "length of an element, 4 GiB, OB": lambda: enormous_length(b"OB"),
    "length of an element, 4 GiB, SQ": lambda: enormous_length(b"SQ"),
    "length of an element, 4 GiB, UT": lambda: enormous_length(b"UT"),
    "lookup table of 20 million entries": lambda: huge_lut(20_000_000),
    "palette of indirect segments": lambda: huge_palette(5_000),
    "png of 65535": lambda: png(65535, 65535, bytes(64)),
    "png of 8192 that holds nothing": lambda: png(2**13, 2**13, bytes(64)),
    "png of 64 that inflates to 1 GiB": lambda: png(64, 64, bytes(2**30)),
    "png with a profile of 512 MiB": lambda: png(
        64, 64, bytes(65 * 64), png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**29)))
    ),
    "png with 200 texts of 64 MiB": lambda: png(
        64, 64, bytes(65 * 64), png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**26))) * 200
    ),
    "tiff of a million pages": lambda: tiff_pages(1_000_000),
    "tiff whose pages go round": lambda: tiff_ring(150, 120),
    "tiff of 65535": lambda: tiff_page(2**16, 2**16, bytes(64)),
    "tiff of 2 million strips": lambda: tiff_page(2**21, 8, bytes(64), _273=(8,) * 2**21, _279=(8,) * 2**21, _278=1),
    "tiff of a billion strips": lambda: tiff_page(64, 64, bytes(4096)).replace(
        struct.pack("<HHL", 273, 4, 1), struct.pack("<HHL", 273, 4, 10**9)
    ),
    "tiff whose strip inflates to 1 GiB": lambda: tiff_page(64, 64, zlib.compress(bytes(2**30)), _259=8),
    "tiff whose jpeg is larger": lambda: tiff_page(64, 64, jpeg(65500, 65500), _259=7),
    "tiff whose j2k is larger": lambda: tiff_page(64, 64, j2k(2**16, 2**16), _259=34712),
    "tiff of enormous tiles": lambda: tiff_page(
        64, 64, zlib.compress(bytes(64)), _259=8, _322=2**20, _323=2**20, _324=8, _325=16
    ),
    "tiff of a tile of 16384": lambda: tiff_page(
        64, 64, zlib.compress(bytes(64)), _259=8, _322=2**15, _323=2**15, _324=8, _325=16
    ),
    "tiff of enormous strips": lambda: tiff_page(64, 64, zlib.compress(bytes(64)), _259=8, _278=2**32 - 1),
    "tiff of many samples": lambda: tiff_page(64, 64, bytes(64), _277=60_000),
    "vol of many scans": lambda: vol(496, 1536, 2**32 - 1),
    "vol of enormous scans": lambda: vol(2**32 - 1, 2**32 - 1, 1),
    "e2e of directories within each other": lambda: e2e(20_000, 40_000, 52),
    "e2e that counts 4 billion": lambda: e2e(1, 2**20, 52)[:4096],
    "fds of many scans": lambda: fds(512, 885, 2**32 - 1),
    "fds of enormous scans": lambda: fds(2**32 - 1, 2**32 - 1, 1),
}

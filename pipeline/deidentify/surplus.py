"""Clears bytes that are not needed for any pixel: in compressed frames and behind the entries of lookup tables.

Fragments keep their lengths and pixels their values. A list says which parts of a codestream decoders need. Every other part
becomes a comment or a free box full of zeros, and a codestream with parts of unknown meaning is refused. Unneeded bytes at the
end of a scan or a tile are found by decoding: changing them changes no pixel.
"""

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import RLELossless

from pipeline.deidentify.values import as_value
from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.codecs import JPEG_2000, JPEG_LS
from pipeline.imaging.dicom.display import expand_segments
from pipeline.imaging.dicom.elements import code, little_endian, numbers, value
from pipeline.imaging.dicom.layout import Layout, grouped_fragments
from pipeline.imaging.guard import unreadable

Decode = Callable[[bytes], NDArray[Any]]
Range = tuple[int, int]
Part = tuple[int, int, tuple[int, int, int, int]]
"""Entropy-coded data: first byte, end, and the rows and columns of the frame that depend on them, half open."""

_ITEM = b"\xfe\xff\x00\xe0"
_TAIL = 4
"""Bytes at the end of a scan or tile of which at least one must be needed; fewer can hold no name and no identifier."""


def without_surplus(data: bytes, layout: Layout, extended_offsets: bytes, decode: Decode) -> Iterator[bytes]:
    """Clear the bytes of encapsulated frames that no decoder needs.

    Parameters
    ----------
    data
        Pixel Data (7FE0,0010), encapsulated (PS3.5 A.4).
    layout
        What the header says of it, checked.
    extended_offsets
        Extended Offset Table (7FE0,0001).
    decode
        Returns the values of one frame, given its joined fragments.

    Yields
    ------
    bytes
        Empty after each frame, so that time is limited by frame; then the new pixel data, up to the end of the last fragment.
        The Basic Offset Table is kept if it is right, and emptied if not.

    Raises
    ------
    UnreadableError
        `UNSUPPORTED_ENCODING` if a frame has parts of unknown meaning; everything that `decode` raises.
    """
    table = data[8 : 8 + int.from_bytes(data[4:8], "little")]
    starts, cleaned = [], bytearray()
    for number, group in enumerate(grouped_fragments(data, layout.frames, extended_offsets)):
        encoded = b"".join(data[one] for one in group)
        starts += [len(cleaned)] * (number < layout.frames)
        new = _cleared(encoded, layout, decode) if number < layout.frames else bytes(len(encoded))
        at = 0
        for one in group:
            size = one.stop - one.start
            cleaned += _ITEM + size.to_bytes(4, "little") + new[at : at + size]
            at += size
        yield b""
    right = b"".join(start.to_bytes(4, "little") for start in starts if start < 2**32)
    offsets = table if table == right else b""
    yield b"".join((_ITEM, len(offsets).to_bytes(4, "little"), offsets, cleaned))


def extended_offset_tables(data: bytes, frames: int) -> tuple[bytes, bytes]:
    """Return the right Extended Offset Table (7FE0,0001) and Lengths (7FE0,0002), empty if a frame has several fragments."""
    groups = grouped_fragments(data, frames)[:frames]
    if any(len(group) > 1 for group in groups):
        return b"", b""
    first = groups[0][0].start
    offsets, lengths = zip(*((group[0].start - first, group[0].stop - group[0].start) for group in groups), strict=True)
    return struct.pack(f"<{frames}Q", *offsets), struct.pack(f"<{frames}Q", *lengths)


def _cleared(encoded: bytes, layout: Layout, decode: Decode) -> bytes:
    stream = bytearray(encoded)
    try:
        if layout.transfer_syntax == RLELossless:
            _clear_rle(stream, layout.rows * layout.columns, layout.bits_allocated)
            return bytes(stream)
        if layout.transfer_syntax in JPEG_2000:
            parts = _clear_jpeg_2000(stream)
        else:
            scans = _clear_jpeg(stream, _LS_MARKER if layout.transfer_syntax in JPEG_LS else _MARKER)
            parts = [(*scan, (0, layout.rows, 0, layout.columns)) for scan in scans]
    except (IndexError, struct.error):
        raise _unclear() from None
    _clear_tails(stream, encoded, parts, decode)
    return bytes(stream)


def _unclear() -> UnreadableError:
    return UnreadableError(
        Reason.UNSUPPORTED_ENCODING,
        "The compressed pixel data have parts of unknown meaning, which may hold anything. Export the file uncompressed.",
    )


# Ends of scans and tiles


def _clear_tails(stream: bytearray, encoded: bytes, parts: Sequence[Part], decode: Decode) -> None:
    """Clear the bytes at the end of each part that no pixel depends on, and check that all pixels are as before.

    Parts with different pixels are searched together, since a frame may have hundreds of tiles.
    """
    with unreadable("The compressed pixel data are damaged and cannot be decoded. Copy or export the file again."):
        pixels = decode(encoded)
    for group in _rounds(parts):
        changed = _unneeded(stream, [(part, *_other_tail(stream, *part[:2])) for part in group], pixels, decode)
        needed, free = {part: part[0] for part in changed}, {part: part[1] for part in changed}
        # A binary search: zeros from `free` on change nothing, and earlier ones may not either.
        while middles := {part: (needed[part] + free[part]) // 2 for part in changed if needed[part] < free[part]}:
            zeros = [(part, middle, bytes(part[1] - middle)) for part, middle in middles.items()]
            unneeded = _unneeded(stream, zeros, pixels, decode)
            free |= {part: middles[part] for part in unneeded}
            needed |= {part: middle + 1 for part, middle in middles.items() if part not in unneeded}
        for part, start in free.items():
            stream[start : part[1]] = bytes(part[1] - start)
    if stream != encoded and not _is_same(stream, pixels, decode):
        raise _unclear()


def _rounds(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Yield the parts in groups in which each has its own pixels, without those that are too short to hold anything."""
    rest = [part for part in parts if part[1] - part[0] > _TAIL]
    while rest:
        by_pixels = {part[2]: part for part in reversed(rest)}
        some = [part for part in rest if by_pixels[part[2]] is part]
        yield some
        rest = [part for part in rest if by_pixels[part[2]] is not part]


def _other_tail(stream: bytearray, start: int, stop: int) -> tuple[int, bytes]:
    """Return the first byte of the end of a part, and other bytes for it without 0xff, which would begin a marker."""
    first = stop - _TAIL - (stream[stop - _TAIL - 1] == 0xFF and stop - _TAIL > start)
    return first, bytes(one ^ (0x54 if one == 0xAA else 0x55) for one in stream[first:stop])


def _unneeded(
    stream: bytearray, changes: Sequence[tuple[Part, int, bytes]], pixels: NDArray[Any], decode: Decode
) -> list[Part]:
    """Return the parts in which the changed bytes change no pixel."""
    changed = bytearray(stream)
    for _, start, other in changes:
        changed[start : start + len(other)] = other
    try:
        decoded = decode(bytes(changed))
    except Exception:  # whatever a decoder raises: some of the bytes are needed
        halves = (changes[: len(changes) // 2], changes[len(changes) // 2 :]) if len(changes) > 1 else ()
        return [part for some in halves for part in _unneeded(stream, some, pixels, decode)]
    if decoded.shape != pixels.shape:
        return []
    return [part for part, _, _ in changes if np.array_equal(decoded[_slices(part)], pixels[_slices(part)])]


def _slices(part: Part) -> tuple[slice, slice]:
    top, bottom, left, right = part[2]
    return slice(top, bottom), slice(left, right)


def _is_same(encoded: bytes | bytearray, pixels: NDArray[Any], decode: Decode) -> bool:
    try:
        return np.array_equal(decode(bytes(encoded)), pixels)
    except Exception:  # whatever a decoder raises
        return False


# JPEG and JPEG-LS (ISO/IEC 10918-1 Annex B, 14495-1 Annex C)

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker after entropy-coded data, in which 0xff is followed by 0, or by 0xd0 to 0xd7 if decoding restarts."""
_LS_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
"""The same for JPEG-LS, in which 0xff is followed by a byte below 0x80."""
_SOI, _EOI, _SOS, _DQT, _DHT, _DRI, _COM, _LSE = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xFE, 0xF8
_PROGRESSIVE, _LOSSLESS, _LS_FRAME, _ARITHMETIC, _DAC = 0xC2, 0xC3, 0xF7, frozenset({0xC9, 0xCA, 0xCB}), 0xCC
_FRAMES = frozenset({0xC0, 0xC1, _PROGRESSIVE, _LOSSLESS, _LS_FRAME, *_ARITHMETIC})
_JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"
"""Version 1.01, no unit, square pixels, no thumbnail."""
_ADOBE, _HP_COLOUR = b"Adobe", b"mrfx"
_PRESETS, _PRESETS_LENGTH = 1, 13


def _clear_jpeg(stream: bytearray, marker_in_data: re.Pattern[bytes]) -> list[Range]:
    """Clear a codestream and return the ranges of its entropy-coded data."""
    if stream[:2] != b"\xff\xd8":
        raise _unclear()
    scans: list[Range] = []
    frame, components = 0, dict[int, int]()
    defined, used, segments = dict[tuple[int, int], int](), set[int](), list[tuple[int, int, list[Range]]]()
    at = 2
    while True:
        following = _MARKER.search(stream, at)
        if following is None:
            raise _unclear()
        stream[at : following.start()] = b"\xff" * (following.start() - at)
        at, marker = following.start(), stream[following.start() + 1]
        if marker == _EOI:
            stream[at + 2 :] = bytes(len(stream) - at - 2)
            break
        if marker < 0x02 or marker == _SOI:
            raise _unclear()
        stop = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stop < at + 4 or stop > len(stream):
            raise _unclear()
        if marker in _FRAMES and not frame and stop - at == 10 + 3 * stream[at + 9]:
            frame = marker
            components = {stream[one]: stream[one + 2] for one in range(at + 10, stop, 3)}
        elif marker in (_DHT, _DQT):
            definitions = list(_definitions(stream, marker, at + 4, stop))
            defined |= {(kind, number): start for kind, number, start, _ in definitions}
            segments.append((at, stop, [(start, end) for _, _, start, end in definitions]))
        elif marker == _SOS and frame:
            used |= {defined[table] for table in _tables_of_scan(stream, at, stop, frame, components) if table in defined}
        elif not _is_needed(stream, marker, at, stop, frame):
            _to_comment(stream, at, stop)
        at = stop
        if marker == _SOS:
            end = marker_in_data.search(stream, stop)
            at = end.start() if end else len(stream)
            scans.append((stop, at))
    for start, stop, definitions_in in segments:
        _keep_definitions(stream, start, stop, [one for one in definitions_in if one[0] in used])
    return scans


def _definitions(stream: bytearray, marker: int, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the tables of a segment: kind, number, start, stop."""
    while at < stop:
        high, number = divmod(stream[at], 16)
        size = 1 + 64 * (1 + high) if marker == _DQT else 17 + sum(stream[at + 1 : at + 17])
        if at + size > stop or high > 1:
            raise _unclear()
        yield _DQT if marker == _DQT else high, number, at, at + size
        at += size


def _tables_of_scan(stream: bytearray, at: int, stop: int, frame: int, components: dict[int, int]) -> set[tuple[int, int]]:
    """Return the tables that a scan uses, as (kind, number); fields without a choice get their only value."""
    count = stream[at + 4]
    if stop - at != 8 + 2 * count:
        raise _unclear()
    used = set[tuple[int, int]]()
    first, last, steps = stream[stop - 3 : stop]
    for one in range(at + 5, at + 5 + 2 * count, 2):
        if frame == _LS_FRAME:
            stream[one + 1] = 0  # a mapping table, which DICOM does not use (PS3.5 A.4.3)
            continue
        direct, alternating = divmod(stream[one + 1], 16)
        if frame == _LOSSLESS:
            used.add((0, direct))
            continue
        used.add((_DQT, components.get(stream[one], -1)))
        if frame != _PROGRESSIVE or (first == 0 and steps < 16):
            used.add((0, direct))
        if frame != _PROGRESSIVE or last > 0:
            used.add((1, alternating))
    if frame in (0xC0, 0xC1):
        stream[stop - 3 : stop] = b"\x00\x3f\x00"
    return used


def _is_needed(stream: bytearray, marker: int, at: int, stop: int, frame: int) -> bool:
    """Return whether decoders need a segment, and clear what they do not need within it."""
    content = stream[at + 4 : stop]
    if marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= len(_JFIF):
        kept = _JFIF
    elif marker == 0xEE and content.startswith(_ADOBE) and len(content) >= 12:
        kept = _ADOBE + b"\x00\x64\0\0\0\0" + bytes([min(content[11], 2)])
    elif marker == 0xE8 and content.startswith(_HP_COLOUR) and len(content) > len(_HP_COLOUR):
        kept = bytes(content[:5])
    else:
        return (
            (marker == _DRI and 4 <= stop - at - 2 <= 6)
            or (marker == _DAC and frame in _ARITHMETIC)
            or (marker == _LSE and content[0] == _PRESETS and stop - at - 2 == _PRESETS_LENGTH)
        )
    stream[at + 4 : stop] = kept + bytes(stop - at - 4 - len(kept))
    return True


def _to_comment(stream: bytearray, start: int, stop: int) -> None:
    stream[start:stop] = bytes([0xFF, _COM]) + (stop - start - 2).to_bytes(2, "big") + bytes(stop - start - 4)


def _keep_definitions(stream: bytearray, start: int, stop: int, used: Sequence[Range]) -> None:
    """Keep the used tables of a segment, and fill the space of the others with a comment."""
    kept = b"".join(stream[one:end] for one, end in used)
    if len(kept) == stop - start - 4:
        return
    if not kept:
        _to_comment(stream, start, stop)
        return
    middle = start + 4 + len(kept)
    stream[start + 2 : middle] = (2 + len(kept)).to_bytes(2, "big") + kept
    _to_comment(stream, middle, stop)


# JPEG 2000 (ISO/IEC 15444-1 Annex A and I, 15444-15)

_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_SIZ, _CAP, _COD, _COC, _QCD, _QCC, _RGN, _POC, _PPM, _PPT = 0x51, 0x50, 0x52, 0x53, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x61
_SOT, _SOD, _EOC, _J2K_COM = 0x90, 0x93, 0xD9, 0x64
_PARTS = frozenset({_SIZ, _CAP, _COD, _COC, _QCD, _QCC, _RGN, _POC, _PPM, _PPT})
_BRANDS = frozenset({b"jp2 ", b"jph ", b"jpx "})
_GREY, _SRGB, _COLOUR_BOX = 17, 16, 15


def _clear_jpeg_2000(stream: bytearray) -> list[Part]:
    """Clear a codestream and the boxes around it, and return the data of its tiles."""
    at = _clear_boxes(stream) if stream.startswith(_SIGNATURE) else 0
    if stream[at : at + 4] != b"\xff\x4f\xff\x51":
        raise _unclear()
    components = int.from_bytes(stream[at + 40 : at + 42], "big")
    segments, tiles = list[tuple[int, int, int]](), list[Part]()
    size = bytes(stream[at + 8 : at + 42 + 3 * components])
    at, tile, tile_stop = at + 2, 0, 0
    while stream[at + 1] != _EOC:
        marker, stop = stream[at + 1], at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at] != 0xFF or (marker != _SOD and (stop < at + 4 or 0x30 <= marker < 0x40)):
            raise _unclear()
        if marker == _SOD:
            if not at + 2 <= tile_stop <= len(stream) - 2:
                raise _unclear()
            tiles.append((at + 2, tile_stop, _pixels_of_tile(size, tile)))
            at = tile_stop
            continue
        if marker == _SOT:
            tile, length = struct.unpack_from(">HI", stream, at + 4)
            tile_stop = at + length if length else stream.rindex(b"\xff\xd9")
        else:
            segments.append((marker, at, stop))
        at = stop
    stream[at + 2 :] = bytes(len(stream) - at - 2)
    levels = max(
        (
            stream[one + (9 if marker == _COD else 5 + _width(components))]
            for marker, one, _ in segments
            if marker in (_COD, _COC)
        ),
        default=0,
    )
    for marker, start, stop in segments:
        needed = start + _needed(stream, marker, start, components, levels) if marker in _PARTS else 0
        if (
            needed
            and marker in (_COC, _QCC, _RGN)
            and int.from_bytes(stream[start + 4 : start + 4 + _width(components)], "big") >= components
        ):
            needed = 0
        if needed > stop:
            raise _unclear()
        if needed:
            stream[needed:stop] = bytes(stop - needed)
        else:
            stream[start:stop] = bytes([0xFF, _J2K_COM]) + (stop - start - 2).to_bytes(2, "big") + bytes(stop - start - 4)
    return tiles


def _pixels_of_tile(size: bytes, tile: int) -> tuple[int, int, int, int]:
    """Return the rows and columns of the image that a tile covers, by the sizes in SIZ (ISO/IEC 15444-1 A.5.1, B.3)."""
    right, bottom, left, top, width, height, first_left, first_top = struct.unpack_from(">8I", size)
    if not (width and height and right > first_left) or set(size[35::3] + size[36::3]) != {1}:
        raise _unclear()
    row, column = divmod(tile, -(-(right - first_left) // width))
    rows = (min(max(first_top + (row + one) * height, top), bottom) - top for one in (0, 1))
    columns = (min(max(first_left + (column + one) * width, left), right) - left for one in (0, 1))
    return (*rows, *columns)


def _width(components: int) -> int:
    """Return the bytes that the number of a component takes."""
    return 1 if components < 257 else 2


def _needed(stream: bytearray, marker: int, at: int, components: int, levels: int) -> int:
    """Return how many bytes of a segment, its marker included, have a meaning (ISO/IEC 15444-1 A.5, A.6)."""
    length, width = 2 + int.from_bytes(stream[at + 2 : at + 4], "big"), _width(components)
    if marker == _SIZ:
        return 40 + 3 * components
    if marker == _COD:
        return 14 + (stream[at + 9] + 1) * (stream[at + 4] & 1)
    if marker == _COC:
        return 10 + width + (stream[at + 5 + width] + 1) * (stream[at + 4 + width] & 1)
    if marker in (_QCD, _QCC):
        start = at + 4 + width * (marker == _QCC)
        steps = {0: 3 * levels + 1, 1: 2, 2: 2 * (3 * levels + 1)}.get(stream[start] & 0x1F, length)
        return min(length, start - at + 1 + steps)
    if marker == _RGN:
        return 6 + width
    return 8 + 2 * int.from_bytes(stream[at + 4 : at + 8], "big").bit_count() if marker == _CAP else length


def _clear_boxes(stream: bytearray) -> int:
    """Clear the boxes of a JP2 file and return the start of its codestream."""
    at = len(_SIGNATURE)
    while stream[at + 4 : at + 8] != b"jp2c":
        stop = at + int.from_bytes(stream[at : at + 4], "big")
        if stop < at + 8 or stop > len(stream):
            raise _unclear()
        kind = bytes(stream[at + 4 : at + 8])
        if kind == b"ftyp":
            brands = (bytes(stream[one : one + 4]) for one in range(at + 16, stop - 3, 4))
            kept = b"".join(
                one if one in _BRANDS else b"jp2 " for one in (bytes(stream[at + 8 : at + 12]), b"\0\0\0\0", *brands)
            )
            kept = kept[:4] + bytes(4) + kept[8:]
            stream[at + 8 : stop] = kept + bytes(stop - at - 8 - len(kept))
        elif kind == b"jp2h":
            _clear_header_boxes(stream, at + 8, stop)
        else:
            _to_free(stream, at, stop)
        at = stop
    return at + (16 if stream[at : at + 4] == b"\0\0\0\1" else 8)


def _clear_header_boxes(stream: bytearray, at: int, stop: int) -> None:
    """Keep size, bits and colour. A colour profile becomes the number of its colour space; a palette is refused."""
    components, has_colour = 1, False
    while at < stop:
        end = at + int.from_bytes(stream[at : at + 4], "big")
        kind = bytes(stream[at + 4 : at + 8])
        if end < at + 8 or end > stop or kind in (b"pclr", b"cmap"):
            raise _unclear()
        if kind == b"ihdr" and end - at == 22:
            components = int.from_bytes(stream[at + 16 : at + 18], "big")
        elif kind == b"colr" and not has_colour and (end - at == _COLOUR_BOX or end - at >= _COLOUR_BOX + 8):
            enumerated = (
                stream[at + 11 : at + 15] if stream[at + 8] == 1 else (_SRGB if components > 2 else _GREY).to_bytes(4, "big")
            )
            stream[at : at + _COLOUR_BOX] = _COLOUR_BOX.to_bytes(4, "big") + b"colr\1\0\0" + enumerated
            if end - at > _COLOUR_BOX:
                _to_free(stream, at + _COLOUR_BOX, end)
            has_colour = True
        elif not ((kind == b"bpcc" and end - at == 8 + components) or (kind == b"cdef" and end - at == 10 + 6 * components)):
            _to_free(stream, at, end)
        at = end


def _to_free(stream: bytearray, start: int, stop: int) -> None:
    stream[start:stop] = (stop - start).to_bytes(4, "big") + b"free" + bytes(stop - start - 8)


# RLE (PS3.5 Annex G)

_RLE_HEADER, _NOTHING = 64, 0x80


def _clear_rle(stream: bytearray, pixels: int, bits_allocated: int) -> None:
    """Clear the unused words of the header, the end of a segment's last run if it is too long, and what follows it."""
    words = struct.unpack_from("<16I", stream)
    stream[4 * (words[0] + 1) : _RLE_HEADER] = bytes(_RLE_HEADER - 4 * (words[0] + 1))
    size = (pixels + 7) // 8 if bits_allocated == 1 else pixels
    for start, stop in pairwise([*words[1 : words[0] + 1], len(stream)]):
        at, left = start, size
        while left > 0 and at < stop:
            count = stream[at]
            if count < _NOTHING:
                run = min(at + count + 2, stop)
                if count + 1 > left:
                    stream[at + 1 + left : run] = bytes(max(0, run - at - 1 - left))
                left, at = left - count - 1, run
            else:
                left, at = left - (257 - count) * (count > _NOTHING), at + 1 + (count > _NOTHING)
        at = min(at, stop)
        stream[at:stop] = bytes([_NOTHING if stop - at > 1 else 0]) * (stop - at)


# Lookup tables (PS3.3 C.7.6.3.1.5, C.7.9.2, C.11.1)

_PALETTES = tuple(f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue", "Alpha"))
_WITH_PALETTE = ("COLOR", "COLOR_RANGE", "MIXED")
"""Pixel Presentation (0008,9205) of grey images that are displayed with a supplemental palette (PS3.3 C.7.6.19)."""


def cut_lookup_tables(dataset: Dataset) -> None:
    """Cut lookup tables and palettes to the number of entries in their descriptors, at any depth, in place.

    Palettes of images that are displayed without one are removed, and so is Encapsulated Pixel Data Value Total Length
    (7FE0,0003).
    """
    dataset.pop("EncapsulatedPixelDataValueTotalLength", None)
    shown = code(dataset, "PhotometricInterpretation")
    if shown not in ("", "PALETTE COLOR") and code(dataset, "PixelPresentation") not in _WITH_PALETTE:
        for name in _PALETTES:
            for keyword in (f"{name}Descriptor", f"{name}Data", f"Segmented{name}Data"):
                dataset.pop(keyword, None)
    for name in ("LUT", *_PALETTES):
        descriptor = numbers(dataset, f"{name}Descriptor")
        entries = int(descriptor[0]) % 2**16 or 2**16 if len(descriptor) == 3 else 0
        for keyword in (f"{name}Data",) if name == "LUT" else (f"{name}Data", f"Segmented{name}Data"):
            if keyword in dataset:
                _cut_table(dataset, keyword, entries, int(descriptor[2]) if entries else 0)
    for tag in list(dataset.keys()):
        found = value(dataset, tag) if dataset.get_item(tag).VR in ("SQ", "UN", None) else None
        for item in found if isinstance(found, Sequence) else ():
            if isinstance(item, Dataset):
                cut_lookup_tables(item)


def _cut_table(dataset: Dataset, keyword: str, entries: int, bits: int) -> None:
    """Cut one table, whose values are bytes or, in US and SS, words. A table without a valid descriptor is removed."""
    found = dataset[keyword].value
    words = list(found) if isinstance(found, MultiValue | list) else [found] if isinstance(found, int) else None
    if not entries or not (words or isinstance(found, bytes)):
        del dataset[keyword]
    elif words:
        kept = words[: entries if len(words) >= entries else (entries + 1) // 2]
        dataset[keyword].value = as_value(kept)
    elif keyword.startswith("Segmented"):
        kind = np.dtype("<u2" if bits == 16 else "u1")
        data = little_endian(dataset, keyword)
        _, needed = expand_segments(np.frombuffer(data[: len(data) // kind.itemsize * kind.itemsize], kind), entries)
        dataset[keyword].value = found[: needed * kind.itemsize + needed * kind.itemsize % 2]
    else:
        size = entries * (2 if len(found) >= 2 * entries else 1)
        is_swapped = not dataset.original_encoding[1] and dataset[keyword].VR == "OW"
        dataset[keyword].value = without_padding(found[: size + size % 2], size, is_swapped=is_swapped)


def without_padding(data: bytes, size: int, *, is_swapped: bool) -> bytes:
    """Set the byte that makes `size` bytes even to 0; in swapped words it comes before the last byte (PS3.5 8.1.1)."""
    if size % 2 == 0 or len(data) <= size:
        return data
    return data[: size - 1] + (b"\0" + data[size : size + 1] if is_swapped else data[size - 1 : size] + b"\0")

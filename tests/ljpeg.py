"""A JPEG Lossless encoder (ISO/IEC 10918-1 Annex H) for any predictor, since no library writes other than the first one."""

import struct

import numpy as np
from numpy.typing import NDArray


def encode_lossless(pixels: NDArray[np.uint16], predictor: int) -> bytes:
    """Encode a grey picture of 16 bits; every category of difference has a Huffman code of five bits."""
    rows, columns = pixels.shape
    differences = (pixels.astype(np.int64) - _predicted(pixels.astype(np.int64), predictor) + 2**15) % 2**16 - 2**15
    bits = "".join(_code(int(difference)) for difference in differences.ravel())
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    counts = [0, 0, 0, 0, 17, *[0] * 11]
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xC3, struct.pack(">BHHB3B", 16, rows, columns, 1, 1, 0x11, 0)),
            _segment(0xC4, bytes([0, *counts, *range(17)])),
            _segment(0xDA, bytes([1, 1, 0, predictor, 0, 0])),
            data,
            b"\xff\xd9",
        )
    )


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _code(difference: int) -> str:
    """Huffman code of the category, then the additional bits (H.1.2.2); the category 16 has none."""
    if difference == -(2**15):
        return f"{16:05b}"
    category = abs(difference).bit_length()
    additional = difference if difference >= 0 else difference + 2**category - 1
    return f"{category:05b}" + (f"{additional:0{category}b}" if category else "")


def _predicted(pixels: NDArray[np.int64], predictor: int) -> NDArray[np.int64]:
    """Table H.1; the first row is predicted from the left, the first column from above, the first pixel as half the range."""
    left, above = np.roll(pixels, 1, axis=1), np.roll(pixels, 1, axis=0)
    corner = np.roll(above, 1, axis=1)
    chosen = (
        left,
        above,
        corner,
        left + above - corner,
        left + ((above - corner) >> 1),
        above + ((left - corner) >> 1),
        (left + above) // 2,
    )[predictor - 1].copy()
    chosen[0], chosen[:, 0] = left[0], above[:, 0]
    chosen[0, 0] = 2**15
    return chosen

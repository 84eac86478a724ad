"""Copies of a file with faults: cut off, bits flipped, and lengths of DICOM elements swapped; the same seed, the same copy."""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_ELEMENT = re.compile(rb"[\x00-\xff]{4}(?:(?:OB|OW|OF|OD|SQ|UN|UT)\0\0[\x00-\xff]{4}|[A-Z][A-Z][\x00-\xff]{2})")
"""An element with an explicit value representation (PS3.5 7.1.2), little endian, up to its length."""
_LENGTHS = (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFE, 0)


@dataclass(frozen=True)
class Mutant:
    """A file, and what is done to its copy."""

    path: Path
    kind: str
    number: int

    def content(self) -> bytes:
        """The bytes of the copy."""
        whole = self.path.read_bytes()
        seed = zlib.crc32(f"{self.path.name} {self.kind} {self.number}".encode())
        return _KINDS[self.kind](whole, self.number, np.random.default_rng(seed))


def mutants(paths: list[Path], flips: int, swaps: int, steps: int = 10) -> Iterator[Mutant]:
    """Every file cut off at every step of its length, `flips` times with flipped bits, `swaps` times with swapped lengths."""
    for path in paths:
        yield from (Mutant(path, "cut", 100 * step // steps) for step in range(1, steps))
        yield from (Mutant(path, "flip", number) for number in range(flips))
        yield from (Mutant(path, "header", number) for number in range(flips))
        yield from (Mutant(path, "lengths", number) for number in range(swaps))


def _cut(whole: bytes, percent: int, _: np.random.Generator) -> bytes:
    return whole[: len(whole) * percent // 100]


def _flipped(whole: bytes, number: int, rng: np.random.Generator) -> bytes:
    return _with_flips(whole, 2 ** (number % 6), len(whole), rng)


def _flipped_header(whole: bytes, number: int, rng: np.random.Generator) -> bytes:
    """Flip bits in front of the pixels, where they do the most harm."""
    start = whole.find(b"\xe0\x7f\x10\x00")
    return _with_flips(whole, 2 ** (number % 4), min(len(whole), start + 512 if start > 0 else 2048), rng)


def _with_flips(whole: bytes, count: int, end: int, rng: np.random.Generator) -> bytes:
    content = bytearray(whole)
    for at, bit in zip(rng.integers(0, end, count), rng.integers(0, 8, count), strict=True):
        content[at] ^= 1 << int(bit)
    return bytes(content)


def _swapped(whole: bytes, number: int, rng: np.random.Generator) -> bytes:
    """Give an element the length of another, or one that is too large, in 4 bytes or in 2."""
    fields = [(match.end() - width, width) for match in _ELEMENT.finditer(whole) for width in (_width(match.group()),)]
    content = bytearray(whole)
    if not fields:
        return bytes(content)
    for _ in range(1 + number % 3):
        (at, width), (other, other_width) = (fields[int(one)] for one in rng.integers(0, len(fields), 2))
        length = content[other : other + other_width]
        if rng.random() < 0.5:
            length = _LENGTHS[int(rng.integers(len(_LENGTHS)))].to_bytes(4, "little")
        content[at : at + width] = length.ljust(4, b"\0")[:width]
    return bytes(content)


def _width(element: bytes) -> int:
    return 4 if len(element) == 12 else 2


_KINDS = {"cut": _cut, "flip": _flipped, "header": _flipped_header, "lengths": _swapped}

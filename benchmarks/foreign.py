"""Pictures that are no medical images at all, generated, always the same: every bundle must refuse them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[np.float32]

SIDES = ((224, 224), (512, 512), (496, 768), (1024, 800))
CROPS = 24
_WORDS = ("patient", "clinic", "report", "visit", "desk", "beside", "tea", "earlier", "was", "the", "1234", "of", "567", "a")


def foreign_pictures() -> Iterator[tuple[str, Array]]:
    """Yield the name of a kind and a picture in [0, 1], float32 of shape (rows, columns)."""
    rng = np.random.default_rng(0)
    yield from _photographs(rng)
    yield from _noise(rng)
    yield from _pages(rng)
    yield from _patterns()


def _photographs(rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    from sklearn.datasets import load_sample_images

    for image in load_sample_images().images:
        grey = np.asarray(Image.fromarray(image).convert("L"), np.float32) / 255
        yield "photographs", grey
        for _ in range(CROPS):
            side = int(rng.integers(100, min(grey.shape)))
            top, left = (int(rng.integers(0, length - side)) for length in grey.shape)
            yield "photographs", grey[top : top + side, left : left + side]


def _noise(rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    for rows, columns in SIDES:
        for cell in (1, 2, 4, 8, 16, 32, 64):
            shape = (rows // cell + 1, columns // cell + 1)
            for coarse in (rng.random(shape), rng.normal(0.5, 0.15, shape), rng.normal(0.2, 0.05, shape)):
                blocks = np.kron(np.clip(coarse, 0, 1), np.ones((cell, cell)))[:rows, :columns].astype(np.float32)
                yield "noise in blocks", blocks
                smooth = Image.fromarray(np.clip(coarse, 0, 1).astype(np.float32)).resize(
                    (columns, rows), Image.Resampling.BICUBIC
                )
                yield "noise, smooth", np.clip(np.asarray(smooth, np.float32), 0, 1)


def _pages(rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    for rows, columns in SIDES:
        for size in (10, 16, 28, 48):
            for ink, paper in ((0, 255), (255, 0), (60, 200)):
                page = Image.new("L", (columns, rows), paper)
                draw, font = ImageDraw.Draw(page), ImageFont.load_default(size)
                for top in range(4, rows, round(size * 1.4)):
                    draw.text((8, top), " ".join(rng.choice(_WORDS, columns // (size * 2) + 4)), ink, font)
                yield "pages of text", np.asarray(page, np.float32) / 255


def _patterns() -> Iterator[tuple[str, Array]]:
    for rows, columns in SIDES:
        down, across = np.mgrid[0:rows, 0:columns].astype(np.float32)
        vertical, horizontal = down / (rows - 1), across / (columns - 1)
        radius = np.hypot(vertical - 0.5, horizontal - 0.5) * np.sqrt(2)
        for picture in (vertical, horizontal, (vertical + horizontal) / 2, radius, 1 - radius, 0.3 + 0.4 * vertical):
            yield "gradients", np.clip(picture, 0, 1).astype(np.float32)
        for cell in (2, 8, 32, 100):
            board = (down // cell + across // cell) % 2
            for low, high in ((0.0, 1.0), (0.3, 0.6)):
                yield "checkerboards", (low + (high - low) * board).astype(np.float32)

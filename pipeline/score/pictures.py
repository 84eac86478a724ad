"""Heatmaps as pictures: the frame beside the frame with its heatmap, the square that the network saw, and a colour scale."""

import io
from dataclasses import replace
from functools import lru_cache

import numpy as np
from imagecodecs import jpeg8_encode
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.frames import FloatArray, Frame
from pipeline.imaging.preprocess import PANEL_GAP, onto_frame, seen_square
from pipeline.model.bundle import Manifest
from pipeline.predictions import Heatmap
from pipeline.score.reading import View, view_of

Colours = NDArray[np.uint8]
"""Red, green, blue and a byte without meaning: shape (rows, columns, 4). Whole words are copied several times as fast."""

OPACITY = 0.75
_MARGIN, _SCALE_WIDTH, _MIN_SCALE, _CAPTION, _LEGEND = 8, 96, 144, 30, 22
_DASH = 6
_TEXT_SIZE = 16
_SURROUNDS = 32  # of up to 2.5 MiB: radiographs of one archive may all differ in shape
_JPEG_QUALITY = 90
_BACKGROUND, _INK = (16, 16, 16), (235, 235, 235)
_NO_EVIDENCE = "no positive evidence"
_SEEN = "the square that the network saw; it did not look outside"
# Nine of the 256 colours of matplotlib's "plasma" (Smith and van der Walt 2015, CC0), evenly spaced: lightness rises evenly.
_PLASMA = (
    (13, 8, 135),
    (76, 2, 161),
    (126, 3, 168),
    (170, 35, 149),
    (204, 71, 120),
    (230, 108, 92),
    (248, 149, 64),
    (253, 197, 39),
    (240, 249, 33),
)


def draw(view: View, heatmap: Heatmap, full: float, meaning: str) -> Colours:
    """Draw a frame beside itself with the heatmap on it; nothing in the picture names the patient.

    If the network saw a part of the frame only, a dashed line and a legend show which.

    Parameters
    ----------
    view
        Of the frame, as its network saw it.
    heatmap
        Of that frame.
    full
        Heatmap value of the last colour: that of the bundle, so that equal colours mean equal evidence in every picture of a
        run. Larger values look the same.
    meaning
        What the values are, in two or three words.

    Returns
    -------
    Colours
        A picture that depends on the arguments alone.
    """
    assert heatmap.values is not None  # noqa: S101 - for mypy
    height, width = view.grey.shape
    values = onto_frame(heatmap.values, view.box, view.size, (height, width))
    square = seen_square(view.box, view.size, (height, width))
    words = _surround(height, width, caption(heatmap, meaning), full, square is not None).copy()
    words[:height, :width] = _blends().take(view.grey)  # under the first colour, which leaves grey as it is
    heated = words[:height, width + PANEL_GAP : 2 * width + PANEL_GAP]
    heated[:] = _blend(view.grey, values / np.float32(full))
    if square is not None:
        _outline(heated, *square)
    return _bytes(words)


def draw_heatmap(frame: Frame, heatmap: Heatmap, manifest: Manifest) -> NDArray[np.uint8]:
    """Draw a frame beside itself with the heatmap on it, as scoring does.

    Parameters
    ----------
    frame
        What was scored.
    heatmap
        One of those that `Predictor.predict` gives for the frame.
    manifest
        That of the bundle.

    Returns
    -------
    array of shape (rows, columns, 3)
        Red, green and blue as uint8: a picture with a colour scale and a caption.
    """
    view, support = view_of(frame, manifest.preprocessing), manifest.heatmap
    return np.ascontiguousarray(draw(view, heatmap, support.full_scale, support.meaning)[..., :3])


def caption(heatmap: Heatmap, meaning: str) -> str:
    """Return the words below a picture: whose heatmap it shows, and what its values are, or that there are none."""
    return f"{heatmap.label}: {meaning if heatmap.has_positive_evidence else _NO_EVIDENCE}"


def png(picture: Colours) -> bytes:
    """Return a picture as a PNG file; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture[..., :3])).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def jpeg(picture: Colours) -> bytes:
    """Return a picture as a JPEG file with colours at full resolution; equal pictures give equal bytes."""
    return bytes(jpeg8_encode(picture, level=_JPEG_QUALITY, colorspace="RGBA", outcolorspace="YCBCR", subsampling="444"))


@lru_cache(maxsize=1)
def colours() -> NDArray[np.uint8]:
    """Return the colour scale: uint8 array of shape (256, 3), dark blue to yellow with evenly rising lightness."""
    places = np.linspace(0, 255, len(_PLASMA))
    channels = [np.interp(np.arange(256), places, channel) for channel in zip(*_PLASMA, strict=True)]
    return np.asarray(np.rint(np.stack(channels, axis=1)), np.uint8)


@lru_cache(maxsize=1)
def _blends() -> NDArray[np.uint32]:
    """Return what every grey level looks like under every colour: uint32 array of shape (256 colours * 256 grey levels,).

    The first three bytes of each are red, green and blue.

    Opacity grows with the colour so that the first leaves the picture as it is, gently: a root would draw edges there.
    """
    share = np.linspace(0, 1, 256)[:, None, None]
    opacity = OPACITY * share * (2 - share)
    grey = np.arange(256.0)[None, :, None]
    words = np.zeros((256, 256, 4), np.uint8)
    words[..., :3] = np.rint(grey * (1 - opacity) + colours()[:, None, :] * opacity)
    return words.view(np.uint32).ravel()


def _blend(grey: NDArray[np.uint8], share: FloatArray) -> NDArray[np.uint32]:
    """Lay colours over grey levels; `share` of 1 and more is the last colour."""
    colour = np.asarray(np.clip(share, 0, 1) * np.float32(255) + np.float32(0.5), np.uint16)
    return _blends().take(colour << 8 | grey, mode="clip")  # none is outside; other modes check and copy


def _bytes(words: NDArray[np.uint32]) -> Colours:
    return words.view(np.uint8).reshape(*words.shape, 4)


def _outline(panel: NDArray[np.uint32], top: int, left: int, bottom: int, right: int) -> None:
    """Draw a rectangle, its last row and column included, in dashes of light and dark, so that it shows on any grey."""
    light, dark = np.array([[*_INK, 255], [*_BACKGROUND, 255]], np.uint8).view(np.uint32).ravel()
    for line in (panel[top, left:right], panel[bottom - 1, left:right], panel[top:bottom, left], panel[top:bottom, right - 1]):
        line[:] = np.where(np.arange(len(line)) // _DASH % 2, dark, light)


@lru_cache(maxsize=_SURROUNDS)
def _surround(height: int, width: int, text: str, full: float, has_square: bool) -> NDArray[np.uint32]:
    """Draw what is the same in many pictures: the background, the scale with its numbers, and the words below."""
    total = max(height, _MIN_SCALE)
    below = total + _CAPTION + (_LEGEND if has_square else 0)
    canvas = Image.new("RGB", (2 * width + PANEL_GAP + _SCALE_WIDTH, below), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    _draw_scale(canvas, draw, 2 * width + PANEL_GAP + _MARGIN, total, full)
    _write(draw, (_MARGIN, total + 5), text, canvas.width - 2 * _MARGIN)
    if has_square:
        indent = _MARGIN + 5 * _DASH + _MARGIN
        _write(draw, (indent, total + _CAPTION - 2), _SEEN, canvas.width - indent - _MARGIN)
    words = np.array(canvas.convert("RGBA")).view(np.uint32)[..., 0]
    if has_square:
        middle = total + _CAPTION + _LEGEND // 2 - 4
        _outline(words[middle : middle + 2, _MARGIN : _MARGIN + 5 * _DASH], 0, 0, 2, 5 * _DASH)
    return words


def _draw_scale(canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, height: int, full: float) -> None:
    """Draw the colours as they look on middle grey, with the evidence that they stand for."""
    top, bottom = 30, height - 12
    share = np.linspace(1, 0, bottom - top, dtype=np.float32)[:, None].repeat(14, axis=1)
    scale = _bytes(_blend(np.full(share.shape, 128, np.uint8), share))
    canvas.paste(Image.fromarray(np.ascontiguousarray(scale[..., :3])), (left, top))
    _write(draw, (left, 4), "evidence", _SCALE_WIDTH - _MARGIN)
    for part in (0, 0.25, 0.5, 0.75, 1):
        y = round(bottom - 1 - part * (bottom - top - 1))
        draw.line((left + 14, y, left + 18, y), fill=_INK)
        more = "+" if part == 1 else ""
        draw.text((left + 22, y), f"{part * full:.2g}{more}", fill=_INK, font=_font(), anchor="lm")


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int) -> None:
    while text and draw.textlength(text, font=_font()) > width:
        text = text.removesuffix("...")[:-1] + "..." if len(text) > 3 else ""
    draw.text(place, text, fill=_INK, font=_font())


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TEXT_SIZE)


def drawn(heatmap: Heatmap, view: View, manifest: Manifest, as_jpeg: bool, as_png: bool) -> Heatmap:
    """Return a heatmap with its picture on the view of its frame; one that cannot be drawn says why, and costs nothing else."""
    support = manifest.heatmap
    try:
        picture = draw(view, heatmap, support.full_scale, support.meaning)
        rows, columns = view.grey.shape
        files = jpeg(picture) if as_jpeg else b"", png(picture) if as_png else b""
    except Exception as error:  # of Pillow or a codec, which have no base in common; the numbers stand without a picture
        return replace(heatmap, fault=type(error).__name__)
    return replace(heatmap, rows=rows, columns=columns, jpeg=files[0], png=files[1])

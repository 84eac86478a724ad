"""Pieces of HTML: everything that comes from a file goes through `escape` here or before."""

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from pipeline.imaging.heatmap_grid import PANEL_GAP
from pipeline.results.words import moment
from pipeline.results.worklist import Picture

_THUMBNAIL = 112, 72
"""Columns and rows at most: what a list has room for, twice as fine as it is shown."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table; cells are HTML already, and a heading that starts with `#` makes its column one of numbers."""
    classes = [' class="number"' if heading.startswith("#") else "" for heading in headings]
    names = [heading.removeprefix("#") for heading in headings]
    yield "<table><thead><tr>"
    yield "".join(f'<th scope="col"{one}>{name}</th>' for one, name in zip(classes, names, strict=True))
    yield "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td{one}>{cell}</td>" for one, cell in zip(classes, row, strict=True)) + "</tr>"
    yield "</tbody></table>"


def figure(picture: Picture, folder: Path, name: str) -> str:
    """Return a heatmap as a figure that needs no other file: the picture within the page, with a text alternative.

    Buttons lay the frame over its heatmap, half transparent or opaque, without a script. A picture that is missing or damaged
    becomes a sentence instead.
    """
    evidence = "positive evidence" if picture.has_positive_evidence else "no positive evidence"
    description = f"{name}, and beside it the same with the heatmap of {picture.label}: {evidence}"
    try:
        content = (folder / picture.path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            kind, width, height = image.get_format_mimetype(), image.width, image.height
    except OSError:
        return f'<p class="soft">The heatmap of {escape(picture.label)} could not be drawn.</p>'
    encoded = base64.b64encode(content).decode()
    one = f"heatmap-{hashlib.sha256(picture.path.as_posix().encode()).hexdigest()[:12]}"
    cover = f'x="{picture.columns + PANEL_GAP}" width="{picture.columns}" height="{picture.rows}"'
    buttons = "".join(
        f'<input type="radio" name="{one}" id="{one}-{how}" class="{how}"{" checked" if how == "full" else ""}>'
        f'<label for="{one}-{how}">{how}</label>'
        for how in ("full", "faint", "off")
    )
    return (
        f'<figure class="heatmap" role="group" aria-label="Heatmap of {escape(picture.label)}"><span>Heatmap</span>{buttons}'
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(description)}">'
        f'<image id="{one}" width="{width}" height="{height}" href="data:{kind};base64,{encoded}"/>'
        f'<svg class="cover" {cover}><use href="#{one}"/></svg></svg></figure>'
    )


def thumbnail(picture: Picture, folder: Path) -> str:
    """Return the frame of a picture, small; nothing if the picture is missing or damaged, or does not say where its frame is.

    It has no text alternative, since the name of the study stands beside it.
    """
    if not picture.rows or not picture.columns:
        return ""
    try:
        with Image.open(folder / picture.path) as image:
            whole, spare = image.size, min(picture.columns / _THUMBNAIL[0], picture.rows / _THUMBNAIL[1])
            image.draft("L", (int(whole[0] / spare), int(whole[1] / spare)))  # decodes no more than is shown
            scale = image.width / whole[0]
            small = image.convert("L").crop((0, 0, round(picture.columns * scale), round(picture.rows * scale)))
    except OSError:
        return ""
    small.thumbnail(_THUMBNAIL, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=70)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img class="thumbnail" alt="" width="{small.width}" height="{small.height}" src="data:image/jpeg;base64,{encoded}">'
    )


def time(seconds: float) -> str:
    """Return a time as a reader takes it, by the clock on the wall, to the minute; its element has the zone and the seconds."""
    when = moment(seconds)
    return f'<time datetime="{when.isoformat()}">{when:%Y-%m-%d %H:%M}</time>'

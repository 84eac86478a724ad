"""Pieces of HTML: everything that comes from a file goes through `escape` here or before."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from pipeline.results.worklist import Picture


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table; cells are HTML already, and a heading that starts with `#` makes its column one of numbers."""
    classes = [' class="number"' if heading.startswith("#") else "" for heading in headings]
    names = [heading.removeprefix("#") for heading in headings]
    yield "<table><thead><tr>"
    yield "".join(f'<th scope="col"{kind}>{name}</th>' for kind, name in zip(classes, names, strict=True))
    yield "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(classes, row, strict=True)) + "</tr>"
    yield "</tbody></table>"


def figure(picture: Picture, folder: Path, name: str) -> str:
    """Return a heatmap as a figure that needs no other file: the picture within the page, with a text alternative.

    A picture that is missing or damaged becomes a sentence instead.
    """
    evidence = "positive evidence" if picture.has_positive_evidence else "no positive evidence"
    description = f"{name}, and beside it the same with the heatmap of {picture.label}: {evidence}"
    try:
        content = (folder / picture.path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            kind, size = image.get_format_mimetype(), f'width="{image.width}" height="{image.height}"'
    except OSError:
        return f'<p class="soft">The heatmap of {escape(picture.label)} could not be drawn.</p>'
    encoded = base64.b64encode(content).decode()
    return f'<figure><img alt="{escape(description)}" {size} src="data:{kind};base64,{encoded}"></figure>'


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 frame, 2 frames."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(value: float) -> str:
    """Return a part of one in percent with one digit after the point."""
    return f"{value:.1%}"

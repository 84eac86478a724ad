"""An excerpt of a bundle's model card as HTML: what the model is for, and how it did on patients that it was not made with."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

SECTIONS = ("Intended use", "Data", "Figures", "When it does not answer", "Heatmaps")


def excerpt(card: str) -> Iterator[str]:
    """Yield `SECTIONS` of a model card, in its order; what it does not have is left out.

    Parameters
    ----------
    card
        Markdown as `pipeline.train` writes it: headings of the second level, paragraphs, lists and tables between blank lines.
        Everything else comes out as a paragraph of plain text.
    """
    wanted = False
    for block in card.split("\n\n"):
        if block.startswith("## "):
            wanted = block[3:].strip() in SECTIONS
            if wanted:
                yield f"<h3>{escape(block[3:].strip())}</h3>"
        elif wanted and block.strip():
            yield from _block(block.strip())


def _block(block: str) -> Iterator[str]:
    lines = block.splitlines()
    if all(line.startswith("|") for line in lines) and len(lines) > 1:
        heading, _, *rows = (_cells(line) for line in lines)
        yield from table(heading, (row for row in rows if len(row) == len(heading)))
    elif all(line.startswith("- ") for line in lines):
        yield "<ul>" + "".join(f"<li>{_text(line[2:])}</li>" for line in lines) + "</ul>"
    else:
        yield f"<p>{_text(block)}</p>"


def _cells(line: str) -> list[str]:
    """Split a row of a table at the bars that are not escaped."""
    cells = line.strip().strip("|").replace(r"\|", "\0").split("|")
    return [_text(cell.replace("\0", "|").strip()) for cell in cells]


def _text(text: str) -> str:
    return escape(text.replace("**", "").replace("`", ""))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table; cells are HTML already."""
    yield "<table><thead><tr>"
    yield "".join(f'<th scope="col">{name}</th>' for name in headings)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</tbody></table>"

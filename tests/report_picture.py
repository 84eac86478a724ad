"""Makes `docs/report.png`, the picture of a report in the documentation: the worklist and the first study of the demo.

Run `make demo`, then `.venv/bin/python -m tests.report_picture demo-out docs/report.png`. All pictures in it are synthetic. It
needs Chromium (Debian's package chromium).
"""

import argparse
import base64
import io
import re
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from tests.server_chromium import Chromium

WIDTH = 1000
"""Columns of the page, so that text can be read at the width of a README."""
ROWS = 4
"""Rows of the worklist: three findings and a refused radiograph, so that the picture is not too tall."""
COLOURS = 256


def main() -> None:
    """Draw the page as far as the end of its first study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder that `octray demo` or `make demo` wrote")
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    program = shutil.which("chromium")
    if program is None:
        raise SystemExit("Chromium is not here: install Debian's package chromium.")
    content = (arguments.demo / "results" / "report.html").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        short = re.sub(rf'<tr id="row-{ROWS + 1}".*?</tbody>', "</tbody>", content, count=1, flags=re.DOTALL)
        page.write_text(re.sub(r"(</section>).*</main>", r"\1</main>", short, count=1, flags=re.DOTALL), encoding="utf-8")
        picture = draw(Chromium(program), page)
    small = picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=6)  # a third of the bytes
    small.save(arguments.picture, optimize=True)


def draw(chromium: Chromium, page: Path) -> Image.Image:
    """Return a page as it looks on screen, from its top to the end of the first study."""
    with chromium.reader(page) as reader:
        return Image.open(io.BytesIO(base64.b64decode(reader.screenshot(WIDTH, "section.study"))))


if __name__ == "__main__":
    main()

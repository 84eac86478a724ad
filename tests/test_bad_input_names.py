"""Names that files carry, in their paths and in themselves: wherever octray writes them, nothing obeys them or is lost."""

import csv
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from unicodedata import bidirectional

import numpy as np
import pytest
from fastapi.testclient import TestClient

from pipeline.cli.main import main
from pipeline.errors import Reason
from pipeline.imaging.files.names import as_text, visible
from pipeline.ingest.index import load_index
from services.api.app import create_app
from services.api.options import Settings
from tests.builders import make_bundle, make_dicom, make_zip
from tests.test_services_api import running

FORMULA = "=cmd|' calc'!A1"
NAMES = (
    FORMULA,
    "+1+1",
    "-2",
    "@SUM(1)",
    "'=1",
    "''+2",
    "＝1",
    "\t=1",
    "\r=1",
    "a\n=1",
    "<script>alert(1)<／script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt;",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\u202egpj.mcd",
    "a;=1,b",
    '"quoted"',
    "\udcff\udcfe",
    "$(touch x)`id`",
    "%s%n{0}",
    "[red]markup[bold]",
    "日本語\u3000x",
    "long" * 60,
)


def hostile(text: str, number: int) -> bytes:
    """A radiograph that carries a text wherever a header has one; the UIDs among them lead out of a folder."""
    pixels = np.full((64, 64), 40 + number, np.uint8) + np.arange(64, dtype=np.uint8)
    places = {"PatientID": "P" * 60, "PatientName": "N" * 60, "StudyDescription": "D" * 60, "BodyPartExamined": "B" * 16}
    places |= {"Modality": "M" * 16, "ViewPosition": "V" * 16, "SOPInstanceUID": "1" * 62, "SeriesInstanceUID": "2" * 62}
    content = make_dicom(pixels, **places)
    for place in places.values():
        said = ("../../" if place.isdecimal() else "") + text
        content = content.replace(place.encode(), said.encode("utf-8", "replace")[: len(place)].ljust(len(place)))
    return content


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each name a file with it, which also carries it, and one that is no image; an archive with such members."""
    root = tmp_path_factory.mktemp("names")
    for number, name in enumerate(NAMES):
        folder = root / f"label{number % 2}"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(hostile(name, number))
        (root / f"{name[:200]}.txt").write_bytes(b"this is only text")
    members = {f"../{name}": b"text" for name in NAMES[:4]} | {f"{FORMULA}/\x1b[2J\x00.txt": b"text"}
    (root / "+archive.zip").write_bytes(make_zip(members))
    return root


def check_text(text: str) -> None:
    """Nothing that a terminal obeys, and nothing that turns the direction of writing."""
    assert not any((one < " " and one != "\n") or "\x7f" <= one < "\xa0" for one in text), ascii(text)
    assert not any(bidirectional(one) in ("RLO", "LRO", "RLE", "LRE", "RLI", "LRI", "FSI") for one in text), ascii(text)


def check_cells(path: Path) -> list[dict[str, str]]:
    """No cell is a formula, none breaks its row; returns the rows as they are without the apostrophe that guards them."""
    content = path.read_bytes().decode("utf-8")
    check_text(content.replace("\r\n", ""))
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    for row in rows:
        assert None not in row
        for name, cell in row.items():
            assert not cell.startswith(tuple("=+-@\t\r＝")) or name in ("logit",), row
    return [
        {name: cell[1:] if cell.lstrip("'") != cell and cell.lstrip("'")[0] in "=+-@＝" else cell for name, cell in row.items()}
        for row in rows
    ]


def known_sources(root: Path) -> set[str]:
    return {as_text(path.relative_to(root).as_posix()) for path in root.rglob("*") if path.is_file()}


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_score_writes_names_that_do_nothing_and_can_be_found(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path / "bundle", intended_use={"modalities": (), "view_positions": ()})
    out = tmp_path / "out"
    assert main(["score", str(studies), "--bundle", str(tmp_path / "bundle"), "--out", str(out), "--json"]) == 1
    said = capsys.readouterr()
    check_text(said.out + said.err)
    scored, failed = check_cells(out / "predictions.csv"), check_cells(out / "failures.csv")
    known = known_sources(studies)
    assert {row["source"] for row in scored} == {source for source in known if source.startswith("label")}
    assert {row["source"] for row in failed} >= {source for source in known if source.endswith(".txt")}
    sources = {row["source"] for row in (*scored, *failed)}
    assert {json.loads(line)["source"] for line in said.out.splitlines()} == sources
    page = (out / "report.html").read_text(encoding="utf-8")
    check_text(page)
    parser = _Tags()
    parser.feed(page)
    assert "script" not in parser.tags
    assert not any(name.startswith("on") for name in parser.attributes)
    heatmaps = [path.relative_to(out).as_posix() for path in (out / "heatmaps").rglob("*")]
    assert len(heatmaps) == len(NAMES)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./") for name in heatmaps)
    assert not (tmp_path / "x").exists()


def test_inspect_prints_names_that_do_nothing(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(studies)]) == 1
    check_text(capsys.readouterr().out)
    assert main(["inspect", str(studies), "--json"]) == 1
    said = capsys.readouterr().out
    check_text(said)
    lines = [json.loads(line) for line in said.splitlines()]
    assert known_sources(studies) - {"+archive.zip"} <= {line["source"] for line in lines}
    unsafe = {line["source"] for line in lines if line.get("reason") == Reason.UNSAFE_PATH}
    assert unsafe == {f"+archive.zip/\\x2e\\x2e/{visible(name)}" for name in NAMES[:4]}
    assert not any(".." in line["source"].split("/") for line in lines)
    frames = [line for line in lines if "modality" in line]
    assert len(frames) == len(NAMES)
    for line in frames:
        assert set(line["sop_instance_uid"]) <= set("0123456789.")
        assert all(
            part.isprintable() and set(part) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ ")
            for part in (line["modality"], line["view_position"], line["body_part"])
        )


def test_ingest_writes_names_that_do_nothing_and_come_back(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "[red]index"
    arguments = ["ingest", str(studies), "--label-from", "folder:1", "--out", str(index), "--split", "40/20/20/20"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    check_text(said.out + said.err)
    assert "[red]index" in said.err
    rows = check_cells(index / "quarantine.csv")
    loaded = load_index(index)
    assert [row["source"] for row in rows] == [row.source for row in loaded.quarantine]
    sources = {row.source for row in loaded.quarantine} | {record.source for record in loaded.records}
    assert known_sources(studies) - {"+archive.zip"} <= sources


@pytest.mark.parametrize("label", ["=1+1", "[red]x[/red]", "\x1b[2J", "<script>", "../x", "x" * 300])
def test_labels_do_nothing(label: str, studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(
        path for path in studies.glob("label*/*") if as_text(path.name) == path.name and path.name.strip() == path.name
    )
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(path.relative_to(studies).as_posix(), label if number % 2 else "other") for number, path in enumerate(files)]
        csv.writer(file).writerows([("file", "label"), *rows])
    arguments = ["ingest", str(studies), "--labels", str(tmp_path / "labels.csv"), "--split", "40/20/20/20"]
    code = main([*arguments, "--out", str(tmp_path / "index")])
    said = capsys.readouterr()
    check_text(said.out + said.err)
    assert "fault of octray" not in said.err
    assert code in (0, 1, 2)
    if code != 2:
        assert label in load_index(tmp_path / "index").labels


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"file,label\r\na\0b.dcm,x\r\n", "holds characters of value 0"),
        ("file,label\r\na.dcm,x\r\n".encode("utf-16"), r"names files that do not exist \(1\): a\.dcm"),
        (b"file,label\r\n" + b"a" * 200_000 + b",x\r\n", "told apart from line 2 on"),
        (b"\xff\xfe\xff", "is cut off, or its encoding is damaged"),
        (b"", "has no rows"),
        (b'file,label\r\n"a,x\r\n', "told apart from line 2 on"),
        (b"\xef\xbb\xbffile,label\r\n=1+1,x\r\n", r"names files that do not exist \(1\): =1\+1"),
        (b"file,label\r\n../../../etc/passwd,x\r\n", r"not exist \(1\): passwd"),
        (b"file,label,split\r\na.dcm,x," + b"s" * 1000 + b"\r\n", r"has the split s+\.+ in line 2\. It must be one of"),
        (b"file,label\r\n\x1b[2Ja.dcm,x\r\n", r"not exist \(1\): \\x1b\[2Ja\.dcm"),
        (b"x" * 100_000 + b",y\r\n1,2\r\n", r"its columns are x+\.\.\., y"),
    ],
)
def test_tables_of_labels_that_are_none_end_in_a_sentence(
    content: bytes, sentence: str, studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    assert main(["ingest", str(studies), "--labels", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "index")]) == 2
    said = capsys.readouterr().err
    check_text(said)
    assert len(said) < 600
    assert re.search(sentence, said), said


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with running(create_app(make_bundle(tmp_path_factory.mktemp("served") / "bundle"), Settings())) as client:
        yield client


@pytest.mark.parametrize("name", [*(name for name in NAMES if "\udcff" not in name), "../../x", "a\0b", "\\\\server\\share"])
def test_the_service_answers_files_of_any_name(client: TestClient, name: str) -> None:
    for content, status in ((b"text", 422), (hostile(name, 1), 200)):
        quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "").replace("\n", "")
        body = (
            f'--x\r\nContent-Disposition: form-data; name="files"; filename="{quoted}"\r\n\r\n'.encode()
            + content
            + b"\r\n--x--\r\n"
        )
        kind = {"content-type": "multipart/form-data; boundary=x"}
        response = client.post("/v1/predict?heatmaps=false", content=body, headers=kind)
        assert response.status_code in (status, 400, 422), response.text
        check_text(json.dumps(response.json(), ensure_ascii=False))


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "utf-16", "idna", "rot13", "nonsense"])
def test_the_service_survives_names_that_are_no_text(client: TestClient, charset: str) -> None:
    name = {"utf-7": "+2AA-.dcm", "unicode_escape": r"\\ud800.dcm"}.get(charset, "a.dcm")
    body = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\ntext\r\n--x--\r\n'.encode()
    kind = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    response = client.post("/v1/predict", content=body, headers=kind)
    assert 400 <= response.status_code < 500, response.text
    assert response.headers["content-type"] == "application/problem+json"

"""Tables as spreadsheets and programs write them: encodings, delimiters, and files that are none."""

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.ingest.table_reader import Table, read_table

WANTED = ("file", "label")


def read(folder: Path, content: bytes, name: str = "labels.csv") -> Table:
    (folder / name).write_bytes(content)
    return read_table(folder / name, WANTED)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_every_usual_encoding_and_delimiter_is_recognised(tmp_path: Path, encoding: str, delimiter: str) -> None:
    rows = [("file", "label"), ("Müller 1.png", "Ödem"), ("2.png", "œdème")]
    table = read(tmp_path, "\r\n".join(map(delimiter.join, rows)).encode(encoding))
    assert (table.columns, table.delimiter) == (("file", "label"), delimiter)
    assert list(map(tuple, table.rows)) == rows[1:]
    assert table.lines == (2, 3)
    assert bool(table.note) == (encoding == "cp1252")
    assert "Müller" not in table.note


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Пневмония", "cp1251"),
        ("肺炎", "shift_jis"),
        ("肺炎", "gb2312"),
        ("Πνευμονία", "cp1253"),
        ("zapalenie płuc", "cp1250"),
        ("Müller", "mac_roman"),
        ("Müller", "cp850"),
    ],
)
def test_other_encodings_are_refused_with_what_to_do(tmp_path: Path, text: str, encoding: str) -> None:
    with pytest.raises(InputError, match="neither in UTF-8 nor in a Western European encoding. .* CSV UTF-8") as caught:
        read(tmp_path, f"file,label\n1.png,{text}\n".encode(encoding))
    assert str(tmp_path) not in str(caught.value)


def workbook() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (workbook(), "an Excel or OpenDocument workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook"),
        (b"PAR1....PAR1", "a Parquet file"),
        (b"\x1f\x8b\x08", "a compressed file"),
    ],
)
def test_what_is_no_text_is_refused_with_what_to_do(tmp_path: Path, content: bytes, kind: str) -> None:
    with pytest.raises(InputError, match=rf"^labels\.xlsx is {kind}.*Save it as CSV.*File, Save As, CSV UTF-8"):
        read(tmp_path, content, "labels.xlsx")


def test_a_table_that_is_missing_or_cut_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels\.csv cannot be opened"):
        read_table(tmp_path / "labels.csv")
    with pytest.raises(InputError, match="is cut off, or its encoding is damaged"):
        read(tmp_path, "file,label\n1.png,X\n".encode("utf-16")[:-1])
    with pytest.raises(InputError, match="characters of value 0"):
        read(tmp_path, b"file,label\n1.png,X\0\n")


def test_the_line_that_names_the_delimiter_for_excel_is_no_row(tmp_path: Path) -> None:
    table = read(tmp_path, b"sep=;\r\nfile;label\r\n1.png;X\r\n")
    assert (table.columns, table.lines, table.column("label")) == (("file", "label"), (3,), ["X"])


def test_commas_in_the_names_of_other_columns_do_not_decide(tmp_path: Path) -> None:
    table = read(tmp_path, b"file;label;size [x,y,z,w]\n1.png;X;1,2,3,4\n")
    assert table.columns == ("file", "label", "size [x,y,z,w]")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_cell_with_the_delimiter_is_named_with_it(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(InputError, match="marks around a cell that contains a (semicolon|tab)"):
        read(tmp_path, f"file{delimiter}label\n1.png{delimiter}X{delimiter}Y\n".encode())


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip), min_size=2, max_size=2)
    ),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8-sig", "utf-16"]),
)
def test_what_the_csv_module_writes_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]], delimiter: str, encoding: str
) -> None:
    import csv

    from pipeline.ingest.spelling import trimmed

    cells = [[cell if trimmed(cell) else "x" for cell in row] for row in cells] or [["a", "b"]]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([WANTED, *cells])
    path = tmp_path_factory.mktemp("table") / "labels.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    table = read_table(path, WANTED)
    assert list(map(list, table.rows)) == [[trimmed(cell) for cell in row] for row in cells]

import csv
import io

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.csv_escape import csv_escape, csv_unescape


@example("'=1")
@example("'a")
@example("'")
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_any_text_comes_back_and_never_starts_a_formula(text: str) -> None:
    cell = csv_escape(text)
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerow([cell, "x"])
    assert next(csv.reader(io.StringIO(buffer.getvalue(), newline=""))) == [cell, "x"]
    assert cell[:1] not in set("=+-@\t\r\n＝＋－＠")
    assert csv_unescape(cell) == text

"""The key, what is derived from it, the dates that it moves, and the crosswalk that it seals."""

import hashlib
import hmac
import uuid
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from pipeline.deidentify import crosswalk
from pipeline.deidentify.crosswalk import Secret
from pipeline.deidentify.values import shift_date, shift_date_time
from pipeline.errors import InputError

SECRET, OTHER = Secret(bytes(32)), Secret(bytes(31) + b"\1")


def test_a_uid_is_the_hmac_as_a_uuid() -> None:
    digest = hmac.new(bytes(32), b"octray uid\x001.2.3", hashlib.sha256).digest()
    made = UID(SECRET.uid("1.2.3"))
    assert made == f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"
    assert made.is_valid


@given(st.text(min_size=1), st.text(min_size=1))
def test_results_depend_on_the_key_and_on_the_original_alone(first: str, second: str) -> None:
    assert SECRET.uid(first) == Secret(bytes(32)).uid(first) != OTHER.uid(first)
    assert (SECRET.uid(first) == SECRET.uid(second)) == (first == second)
    assert (SECRET.pseudonym(first) == SECRET.pseudonym(second)) == (first == second)
    assert -3650 <= SECRET.offset_days(first) <= -1


def test_the_key_does_not_show_itself() -> None:
    assert "00" not in repr(SECRET)


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "my.key"
    made = crosswalk.make_or_read_key(path)
    assert crosswalk.make_or_read_key(path) == made != crosswalk.make_or_read_key(tmp_path / "other.key")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.key"
    crosswalk.make_or_read_key(path)
    path.chmod(0o640)
    with pytest.raises(InputError, match=r"Other users can read the key my\.key"):
        crosswalk.read_key(path)


@pytest.mark.parametrize("content", ["", "zz" * 32, "00" * 31, "Schlüssel"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "my.key"
    path.write_text(content, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        crosswalk.read_key(path)


def test_a_missing_key_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no key my\.key"):
        crosswalk.read_key(tmp_path / "my.key")


def test_the_default_place_is_among_the_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert crosswalk.default_key_path() == tmp_path / "octray" / "deidentify.key"


@given(st.dates(min_value=date(1900, 1, 1)), st.integers(-3650, -1))
def test_a_date_moves_as_the_calendar_does(day: date, days: int) -> None:
    moved = (day + timedelta(days=days)).strftime("%Y%m%d")
    assert shift_date(day.strftime("%Y%m%d"), days) == moved
    assert shift_date(day.strftime("%Y.%m.%d"), days) == moved


@given(st.datetimes(min_value=datetime(1900, 1, 1)), st.integers(-3650, -1), st.sampled_from(["", "+0100", "-0930"]))
def test_a_date_time_keeps_its_time_of_day_and_zone(when: datetime, days: int, zone: str) -> None:
    text = f"{when:%Y%m%d%H%M%S.%f}{zone}"
    assert shift_date_time(text, days) == f"{when + timedelta(days=days):%Y%m%d%H%M%S.%f}{zone}"


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("2019", "2018"),
        ("201903", "201902"),
        ("20190301", "20190228"),
        ("2019030112", "2019022812"),
        ("2019+0100", "2018+0100"),
    ],
)
def test_a_date_time_keeps_its_precision(text: str, moved: str) -> None:
    assert shift_date_time(text, -365 if len(text) in (4, 9) else -1) == moved


@pytest.mark.parametrize(
    "text", ["20191301", "20190230", "yesterday", "2019-03-01", "20190301-20190401", "00010101", "2019 Doe"]
)
def test_what_is_no_date_is_not_moved(text: str) -> None:
    assert shift_date(text, -400) is None
    assert shift_date_time(text, -400) is None


def entries(path: Path) -> list[crosswalk.Entry]:
    return list(crosswalk.read_crosswalk(path, SECRET))


def test_the_crosswalk_grows_over_runs_and_repeats_nothing(tmp_path: Path) -> None:
    path = crosswalk.crosswalk_path(tmp_path / "my.key")
    assert path == tmp_path / "my.key.crosswalk"
    for run in ([{"name": "a"}], [{"name": "a"}, {"name": "Müller"}]):
        with crosswalk.Crosswalk(path, SECRET, entries(path)) as writer:
            for entry in run:
                writer.add(entry)
    assert entries(path) == [{"name": "a"}, {"name": "Müller"}]
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_the_key_opens_the_crosswalk(tmp_path: Path) -> None:
    path = tmp_path / "crosswalk"
    with crosswalk.Crosswalk(path, SECRET, entries(path)) as writer:
        writer.add({"patient_id": "MRN-778812"})
    assert b"MRN" not in path.read_bytes()
    with pytest.raises(InputError, match="belongs to another key"):
        list(crosswalk.read_crosswalk(path, OTHER))


def test_an_altered_crosswalk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "crosswalk"
    with crosswalk.Crosswalk(path, SECRET, entries(path)) as writer:
        writer.add({"patient_id": "MRN-778812"})
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="altered"):
        entries(path)


def test_a_line_that_a_killed_run_left_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "crosswalk"
    with crosswalk.Crosswalk(path, SECRET, entries(path)) as writer:
        writer.add({"name": "a"})
    with path.open("ab") as file:
        file.write(b"gAAAAA")
    assert entries(path) == [{"name": "a"}]
    with crosswalk.Crosswalk(path, SECRET, entries(path)) as writer:
        writer.add({"name": "b"})
    assert entries(path) == [{"name": "a"}, {"name": "b"}]
    assert list(tmp_path.iterdir()) == [path]

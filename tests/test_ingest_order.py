"""The order of frames, and instances that contradict each other."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.frames import InstanceKey
from pipeline.ingest.build import in_order
from pipeline.ingest.file_reader import ReadFile, ReadFrame, clashes
from pipeline.ingest.labels import FileId


def seen(instance: str, number: int = 1, series: str = "1", study: str = "1", pixels: str = "", **others: object) -> ReadFrame:
    key = InstanceKey(study, series, instance, number)
    return ReadFrame(key, pixels or f"{instance} {number}", 8, 8, **others)  # type: ignore[arg-type]


def ordered(*files: Sequence[ReadFrame]) -> list[tuple[FileId, ReadFrame]]:
    """Frames of files in order; the source of a file is its number."""
    return in_order({(0, str(number)): frames for number, frames in enumerate(files)})


def names(rows: Iterable[tuple[FileId, ReadFrame]]) -> list[str]:
    return [f"{frame.key.sop_instance_uid}.{frame.key.frame_number}" for _, frame in rows]


def test_a_series_lies_in_the_order_of_its_positions() -> None:
    frames = [seen("c", slice_position_mm=3.0), seen("a", slice_position_mm=-1.5), seen("b", slice_position_mm=0.0)]
    numbered = [replace(frame, instance_number=place) for place, frame in enumerate(frames)]
    for some in (frames, numbered):
        assert names(ordered(*([frame] for frame in some))) == ["a.1", "b.1", "c.1"]


def test_where_one_position_is_missing_the_numbers_count_and_then_the_files() -> None:
    frames = [
        seen("a", slice_position_mm=3.0, instance_number=10),
        seen("b", instance_number=2),
        seen("c", slice_position_mm=1.0, instance_number=1),
    ]
    assert names(ordered(*([frame] for frame in frames))) == ["c.1", "b.1", "a.1"]
    frames[0] = seen("a", slice_position_mm=3.0)
    assert names(ordered(*([frame] for frame in frames))) == ["a.1", "b.1", "c.1"]


def test_series_and_studies_keep_the_order_of_their_first_file() -> None:
    frames = [
        seen("a", series="9", study="2"),
        seen("b", study="1"),
        seen("c", series="1", study="2"),
        seen("d", series="9", study="2"),
    ]
    assert names(ordered(*([frame] for frame in frames))) == ["a.1", "d.1", "c.1", "b.1"]


def test_frames_of_an_instance_stand_together_by_number() -> None:
    volume = [seen("v", number, slice_position_mm=float(-number)) for number in (1, 2, 3)]
    between = seen("w", slice_position_mm=-2.5)
    assert names(ordered(volume, [between])) == ["w.1", "v.1", "v.2", "v.3"]


def test_copies_stand_one_after_the_other() -> None:
    copy = [seen("v", number, instance_number=1) for number in (1, 2)]
    found = [(source, frame.key.frame_number) for (_, source), frame in ordered(copy, copy)]
    assert found == [("0", 1), ("0", 2), ("1", 1), ("1", 2)]


instances = st.tuples(
    st.sampled_from("12"),
    st.sampled_from("12"),
    st.one_of(st.none(), st.floats(-5, 5)),
    st.one_of(st.none(), st.integers(0, 5)),
    st.integers(1, 3),
)


@given(st.lists(instances, max_size=8))
def test_every_frame_stays_and_every_file_stands_together(drawn: list[tuple[str, str, float, int, int]]) -> None:
    files = [
        [
            seen(str(file), number, series, study, slice_position_mm=place, instance_number=counted)
            for number in range(1, count + 1)
        ]
        for file, (study, series, place, counted, count) in enumerate(drawn)
    ]
    rows = ordered(*files)
    assert sorted(names(rows)) == sorted(names(((0, ""), frame) for frames in files for frame in frames))
    for level in (
        [file_id for file_id, _ in rows],
        [frame.key.study_instance_uid for _, frame in rows],
        [(frame.key.study_instance_uid, frame.key.series_instance_uid) for _, frame in rows],
    ):
        changes = sum(one != other for one, other in itertools.pairwise(level))
        assert changes == max(len(set(level)) - 1, 0)


def test_equal_uids_clash_where_the_pixels_differ() -> None:
    files = {
        (0, "a"): ReadFile((seen("1", pixels="x"),)),
        (0, "b"): ReadFile((seen("2", pixels="x"),)),
        (0, "copy"): ReadFile((seen("1", pixels="x"),)),
        (1, "c"): ReadFile((seen("1", pixels="y"),)),
        (1, "shorter"): ReadFile((seen("3", 1), seen("3", 2))),
        (1, "longer"): ReadFile((seen("3", 1), seen("3", 2), seen("3", 3))),
    }
    assert clashes(files) == {
        (0, "a"): (1, "c"),
        (0, "copy"): (1, "c"),
        (1, "c"): (0, "a"),
        (1, "shorter"): (1, "longer"),
        (1, "longer"): (1, "shorter"),
    }

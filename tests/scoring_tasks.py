"""What the tests of scoring run in worker processes."""

import sys
from collections.abc import Iterator, Sequence

from pipeline.imaging.files.study_file import StudyFile
from pipeline.predictions import FramePrediction
from pipeline.score.study import Scoring, score_files


def scored_and_imported(files: Sequence[StudyFile], scoring: Scoring) -> Iterator[tuple[int, set[str]]]:
    """Score files, and say how many frames were, and which packages this process has imported by then."""
    count = sum(isinstance(item, FramePrediction) for items in score_files(files, scoring) for item in items)
    yield count, {name.partition(".")[0] for name in sys.modules}

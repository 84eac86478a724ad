"""How many studies, frames and failures a folder of results holds."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.results.record import StudyRecord
from pipeline.results.worklist import URGENT, urgency_of


@dataclass(frozen=True, slots=True)
class Totals:
    """What stands at the top of a report.

    Parameters
    ----------
    studies
        Studies of which at least one frame was scored.
    urgent
        Those with a finding.
    frames
        Frames that were scored.
    failures
        Files and frames that were not.
    """

    studies: int = 0
    urgent: int = 0
    frames: int = 0
    failures: int = 0

    @staticmethod
    def of(records: Iterable[StudyRecord], normal_label: str | None) -> "Totals":
        """Count the records of a run."""
        studies = urgent = frames = failures = 0
        for record in records:
            studies += bool(record.frames)
            urgent += urgency_of(record.frames, normal_label)[0] == URGENT
            frames += len(record.frames)
            failures += len(record.failures)
        return Totals(studies, urgent, frames, failures)

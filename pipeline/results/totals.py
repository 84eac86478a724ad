"""How many studies, frames and failures a folder of results holds."""

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

    def plus(self, record: StudyRecord, normal_label: str | None) -> "Totals":
        """Return them with one study more."""
        return Totals(
            self.studies + bool(record.frames),
            self.urgent + (urgency_of(record.frames, normal_label)[0] == URGENT),
            self.frames + len(record.frames),
            self.failures + len(record.failures),
        )

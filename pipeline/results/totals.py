"""How many studies, frames and failures a folder of results holds."""

from dataclasses import dataclass

from pipeline.results.worklist import UNCERTAIN, URGENT, Study


@dataclass(frozen=True, slots=True)
class Totals:
    """What stands at the top of a report.

    Parameters
    ----------
    studies
        Studies of which at least one frame was scored.
    urgent, uncertain
        Those with a finding, and those without one of which a finding is uncertain.
    incomplete
        Those of which a frame or a file was not scored.
    not_scored
        Studies of which nothing was scored.
    new
        Studies, scored or not, that are new since the report was last written.
    frames
        Frames that were scored.
    failures
        Files and frames that were not.
    without_image
        Files that have no image by their kind.
    first_at, last_at
        When the first and the last of the studies were scored, in seconds since 1970; 0 if there is none.
    """

    studies: int = 0
    urgent: int = 0
    uncertain: int = 0
    incomplete: int = 0
    not_scored: int = 0
    new: int = 0
    frames: int = 0
    failures: int = 0
    without_image: int = 0
    first_at: float = 0.0
    last_at: float = 0.0

    @property
    def listed(self) -> int:
        """How many studies stand in the worklist."""
        return self.studies + self.not_scored

    def plus(self, study: Study, without_image: int = 0) -> "Totals":
        """Return them with one study more, of which so many files have no image by their kind."""
        is_scored = bool(study.frames)
        return Totals(
            self.studies + is_scored,
            self.urgent + (study.rank >= URGENT),
            self.uncertain + (UNCERTAIN <= study.rank < URGENT),
            self.incomplete + (is_scored and bool(study.failures)),
            self.not_scored + (study.is_listed and not is_scored),
            self.new + (study.is_listed and study.is_new),
            self.frames + len(study.frames),
            self.failures + len(study.failures),
            self.without_image + without_image,
            min(self.first_at or study.scored_at, study.scored_at),
            max(self.last_at, study.scored_at),
        )

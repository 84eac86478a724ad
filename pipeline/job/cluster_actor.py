"""What runs on the machines of a Ray cluster: it loads the bundle, then reads, scores and writes."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.job.outputs import Wanted
from pipeline.job.scorer import Done, Scorer
from pipeline.ledger.types import Claim
from pipeline.model.bundle import load_bundle
from pipeline.score.predictor import Predictor


@dataclass(frozen=True, slots=True)
class Place:
    """What an actor needs to know; the paths must lead to the same folders on every machine.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    base, folder, wanted
        As in `Scorer`.
    """

    bundle: Path
    base: Path
    folder: Path
    wanted: Wanted


class Actor:
    """Scores on one CPU of one machine, once it is ready."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._scorer: Scorer | None = None

    def ready(self) -> None:
        """Load the bundle: not in the constructor, since of what that raises only the text of a traceback arrives.

        Raises
        ------
        BundleError
            Where the bundle cannot be used.
        """
        bundle = load_bundle(self._place.bundle)
        self._scorer = Scorer(Predictor(bundle, threads=1), self._place.base, self._place.folder, self._place.wanted)

    def score(self, claims: list[Claim]) -> list[Done]:
        """Score studies in the order of their claims; call `ready` first."""
        assert self._scorer is not None  # noqa: S101 - for mypy
        return list(self._scorer.outcomes(claims))

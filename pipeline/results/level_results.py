"""Results of studies, eyes and patients, derived from the records of studies whenever they are shown; they are never stored."""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from pipeline.evaluate.calibration import frame_odds, stored
from pipeline.frames import Quarantined
from pipeline.levels import Level, LevelResult, LevelRule, level_result
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, StudyRecord

WITHIN_STUDY = (Level.STUDY, Level.EYE)


def study_results(record: StudyRecord, manifest: Manifest, levels: Collection[Level] = WITHIN_STUDY) -> tuple[LevelResult, ...]:
    """Return the results of a study and of the eyes in it, of those levels that the bundle has.

    Parameters
    ----------
    record
        The study.
    manifest
        Of the bundle.
    levels
        Which results are wanted: that of the patient is that of this study alone.
    """
    return tuple(one for rule in manifest.levels if rule.level in levels for one in _results(rule, [record], manifest))


def patient_results(records: Sequence[StudyRecord], manifest: Manifest) -> tuple[LevelResult, ...]:
    """Return the results of a patient and of the eyes of it, of those levels that the bundle has.

    Parameters
    ----------
    records
        All studies of the patient that are at hand.
    manifest
        Of the bundle.
    """
    return tuple(one for rule in manifest.levels if rule.level is not Level.STUDY for one in _results(rule, records, manifest))


def _results(rule: LevelRule, records: Sequence[StudyRecord], manifest: Manifest) -> list[LevelResult]:
    """Return the result of a level, or those of both eyes, as far as any frame states that it shows them."""
    if rule.level is not Level.EYE:
        return [_result(rule, records, manifest, lambda _: True, lambda _: True)]
    sides: dict[str, set[str]] = {}
    for record in records:
        for frame in record.frames:
            sides.setdefault(frame.source, set()).add(frame.facts.laterality)
    return [
        _result(
            rule,
            records,
            manifest,
            lambda frame, side=side: frame.facts.laterality == side,  # type: ignore[misc]
            lambda failure, side=side: sides.get(failure.source) == {side},  # type: ignore[misc]
            side,
        )
        for side in ("R", "L")
        if any(side in found for found in sides.values())
    ]


def _result(
    rule: LevelRule,
    records: Sequence[StudyRecord],
    manifest: Manifest,
    is_part: Callable[[FramePrediction], bool],
    is_left_out: Callable[[Quarantined], bool],
    side: str = "",
) -> LevelResult:
    frames, labels = [frame for record in records for frame in record.frames if is_part(frame)], manifest.label_set
    logits = [[one.logit for one in frame.predictions] for frame in frames]
    scores = [frame.attention[rule.level] for frame in frames if rule.level in frame.attention]
    return level_result(
        rule,
        frame_odds(np.array(logits).reshape(-1, len(rule.labels)), labels, manifest.calibration),
        [(frame.source, frame.key.frame_number) for frame in frames],
        labels,
        stored(scores) if scores else None,
        left_out=sum(is_left_out(failure) for record in records for failure in record.failures),
        studies=len({record.study_instance_uid for record in records}),
        laterality=side,
    )

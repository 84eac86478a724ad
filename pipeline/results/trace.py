"""The trace of a study: all that has to be known to compute the same numbers again, and when and by what they were computed."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, StudyRecord

SCHEMA_VERSION = 1


class Tracer:
    """Writes the traces of one bundle and machine.

    Parameters
    ----------
    manifest
        That of the bundle.
    provider
        Execution provider of ONNX Runtime.
    threads
        Threads of one call of it; 0 means all cores.
    versions
        Of octray and of the libraries that decide about results.
    """

    def __init__(self, manifest: Manifest, *, provider: str, threads: int, versions: Mapping[str, str]) -> None:
        self._constant = {
            "schema_version": json.dumps(SCHEMA_VERSION),
            "machinery": json.dumps({"provider": provider, "threads": threads, "versions": dict(versions)}),
            "bundle": json.dumps(_bundle(manifest)),
        }

    def trace(self, record: StudyRecord) -> bytes:
        """Return the trace of a study as UTF-8 JSON, a line for each of its members and frames.

        Logits and distances are those that the network gave, before any rounding. When the study was scored is nowhere else in
        the results, which therefore do not depend on it.
        """
        not_scored = (*record.failures, *record.without_image)
        members = self._constant | {
            "times": json.dumps({"begun": record.begun_at, "ended": record.ended_at}),
            "frames": _lines(map(_frame, record.frames)),
            "not_scored": _lines({**asdict(row), "reason": str(row.reason)} for row in not_scored),
        }
        return ("{\n" + ",\n".join(f'"{name}": {text}' for name, text in members.items()) + "\n}\n").encode()


def _lines(values: Iterable[Mapping[str, Any]]) -> str:
    return "[" + ",".join(f"\n {json.dumps(value)}" for value in values) + "]"


def _bundle(manifest: Manifest) -> dict[str, Any]:
    """Return what the bundle does to a frame, and where it comes from."""
    fields = (
        "bundle_id",
        "members",
        "average",
        "files",
        "labels",
        "task",
        "preprocessing",
        "calibration",
        "operating_points",
        "conformal",
        "outliers",
        "quality",
        "intended_use",
        "provenance",
    )
    heatmaps = {"heatmap_full_scale": manifest.heatmap.full_scale, "heatmap_caveat": manifest.heatmap.caveat}
    more = {name for name in ("levels", "local") if getattr(manifest, name)}
    return manifest.model_dump(mode="json", include={*fields, *more}) | heatmaps


def _frame(result: FramePrediction) -> dict[str, Any]:
    facts: dict[str, Any] = asdict(result.facts)
    values: dict[str, Any] = facts.pop("key") | facts | {"input_sha256": facts["file_sha256"]}
    for name in ("file_sha256", "laterality", "view_position"):
        del values[name]
    apart = {one.label: one.disagreement for one in result.predictions if one.disagreement is not None}
    logits = {one.label: one.logit for one in result.predictions}
    values |= {"logits": logits, "distance": result.distance} | ({"disagreement": apart} if apart else {})
    return values | ({"attention": dict(result.attention)} if result.attention else {})

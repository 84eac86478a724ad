"""The trace of a study: all that has to be known to compute the same numbers again, and when and by what they were computed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.frames import FrameFacts, Quarantined
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Machinery:
    """What computed.

    Parameters
    ----------
    provider
        Execution provider of ONNX Runtime.
    threads
        Threads of one call of it; 0 means all cores.
    versions
        Of octray's source text, as a hash, and of the libraries that decide about results.
    """

    provider: str
    threads: int
    versions: Mapping[str, str]


class Tracer:
    """Writes the traces of one bundle and machine.

    Parameters
    ----------
    manifest
        Of the bundle.
    machinery
        What computes.
    """

    def __init__(self, manifest: Manifest, machinery: Machinery) -> None:
        self._constant = {
            "schema_version": json.dumps(SCHEMA_VERSION),
            "machinery": json.dumps(
                {"provider": machinery.provider, "threads": machinery.threads, "versions": dict(machinery.versions)}
            ),
            "bundle": json.dumps(_bundle(manifest)),
        }

    def trace(
        self,
        results: Sequence[tuple[FrameFacts, FramePrediction]],
        failures: Sequence[Quarantined],
        times: Mapping[str, str],
    ) -> bytes:
        """Return the trace of a study as UTF-8 JSON, a line for each of its members and frames.

        Parameters
        ----------
        results
            Of its frames, with logits as the network gave them.
        failures
            What was not scored.
        times
            Names and moments (ISO 8601, UTC); they are nowhere else in the results, which therefore do not depend on them.
        """
        members = self._constant | {
            "times": json.dumps(dict(times)),
            "frames": _lines(_frame(facts, result) for facts, result in results),
            "not_scored": _lines({**asdict(failure), "reason": str(failure.reason)} for failure in failures),
        }
        return ("{\n" + ",\n".join(f'"{name}": {text}' for name, text in members.items()) + "\n}\n").encode()


def _lines(values: Iterable[Mapping[str, Any]]) -> str:
    return "[" + ",".join(f"\n {json.dumps(value)}" for value in values) + "]"


def _bundle(manifest: Manifest) -> dict[str, Any]:
    """Return what the bundle does to a frame, and where it comes from."""
    fields = (
        "bundle_id",
        "architecture",
        "files",
        "labels",
        "activation",
        "preprocessing",
        "normalisation",
        "temperature",
        "operating_points",
        "conformal",
        "outliers",
        "quality",
        "intended_use",
        "provenance",
    )
    heatmaps = {"heatmap_full_scale": manifest.heatmap.full_scale, "heatmap_caveat": manifest.heatmap.caveat}
    return manifest.model_dump(mode="json", include=set(fields)) | heatmaps


def _frame(facts: FrameFacts, result: FramePrediction) -> dict[str, Any]:
    return {
        "source": facts.source,
        "input_sha256": facts.file_sha256,
        "study_instance_uid": facts.key.study_instance_uid,
        "series_instance_uid": facts.key.series_instance_uid,
        "sop_instance_uid": facts.key.sop_instance_uid,
        "frame_number": facts.key.frame_number,
        "transfer_syntax_uid": facts.transfer_syntax_uid,
        "photometric_interpretation": facts.photometric_interpretation,
        "decoder": facts.decoder,
        "rows": facts.rows,
        "columns": facts.columns,
        "decoded_rows": facts.decoded_rows,
        "decoded_columns": facts.decoded_columns,
        "notes": facts.notes,
        "logits": {one.label: one.logit for one in result.predictions},
        "distance": result.distance,
    }

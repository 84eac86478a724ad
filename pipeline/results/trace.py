"""The trace of a study: all that has to be known to compute the same numbers again, and when and by what they were computed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydicom.uid import UID

from pipeline.imaging.dicom.codecs import DECODER_DEPENDENCIES, PLUGIN
from pipeline.model.bundle import Manifest
from pipeline.records import Frame, FramePrediction, Quarantined

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """How a frame was read, without its pixels.

    Parameters
    ----------
    transfer_syntax_uid, photometric_interpretation, notes
        As in `Frame`.
    decoder
        Which library decompressed its pixels; empty for DICOM files that are not compressed, and for what is not DICOM.
    rows, columns
        Of the frame in its file.
    decoded_rows, decoded_columns
        At which it was decoded: fewer where a reduced resolution was enough.
    """

    transfer_syntax_uid: str
    photometric_interpretation: str
    decoder: str
    rows: int
    columns: int
    decoded_rows: int
    decoded_columns: int
    notes: tuple[str, ...]

    @staticmethod
    def of(frame: Frame) -> "FrameFacts":
        """Return the facts of a frame."""
        rows, columns = frame.shape
        return FrameFacts(
            transfer_syntax_uid=frame.transfer_syntax_uid,
            photometric_interpretation=frame.photometric_interpretation,
            decoder=PLUGIN if UID(frame.transfer_syntax_uid) in DECODER_DEPENDENCIES else "",
            rows=rows,
            columns=columns,
            decoded_rows=frame.pixels.shape[0],
            decoded_columns=frame.pixels.shape[1],
            notes=frame.notes,
        )


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


def trace(
    results: Sequence[tuple[FrameFacts, FramePrediction]],
    failures: Sequence[Quarantined],
    manifest: Manifest,
    machinery: Machinery,
    times: Mapping[str, str],
) -> bytes:
    """Return the trace of a study as UTF-8 JSON.

    Parameters
    ----------
    results
        Of its frames, with logits as the network gave them.
    failures
        What was not scored.
    manifest
        Of the bundle.
    machinery
        What computed.
    times
        Names and moments (ISO 8601, UTC); they are nowhere else in the results, which therefore do not depend on them.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "times": dict(times),
        "machinery": {"provider": machinery.provider, "threads": machinery.threads, "versions": dict(machinery.versions)},
        "bundle": _bundle(manifest),
        "frames": [_frame(facts, result) for facts, result in results],
        "not_scored": [{**asdict(failure), "reason": str(failure.reason)} for failure in failures],
    }
    return (json.dumps(content, indent=1) + "\n").encode()


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
    return manifest.model_dump(mode="json", include=set(fields))


def _frame(facts: FrameFacts, result: FramePrediction) -> dict[str, Any]:
    return {
        "source": result.source,
        "input_sha256": result.input_sha256,
        **asdict(result.key),
        **asdict(facts),
        "logits": {one.label: one.logit for one in result.predictions},
        "distance": result.distance,
    }

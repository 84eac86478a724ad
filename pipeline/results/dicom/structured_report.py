"""The structured report: Comprehensive 3D SR by TID 1500 (PS3.16), one measurement group for each frame and label.

If the bundle has results of studies or eyes, a group for each of their labels follows, marked by what it is a result of.
"""

import csv
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pipeline.imaging.identity import derived_uid
from pipeline.levels import Level, LevelPrediction, LevelResult
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, Prediction, State, rounded
from pipeline.results import words
from pipeline.results.dicom import Kind
from pipeline.results.dicom.source import Author, Source, placeholder_image, to_file, version

PRIVATE = "99OCTRAY"
"""Coding Scheme Designator (0008,0102) of codes that only octray gives a meaning (PS3.16 8.2)."""
_STATES = {
    State.POSITIVE: Code("10828004", "SCT", "Positive"),
    State.NEGATIVE: Code("260385009", "SCT", "Negative"),
    State.UNCERTAIN: Code("64957009", "SCT", "Uncertain"),
}
_PRESENCE = Code("121052", "DCM", "Presence of property")
_PRESENT = {
    State.POSITIVE: Code("52101004", "SCT", "Present"),
    State.NEGATIVE: Code("272519000", "SCT", "Absent"),
    State.UNCERTAIN: Code("121059", "DCM", "Presence Undetermined"),
}
"""Values of `_PRESENCE`: of CID 240, and of DCM if neither holds."""
_RETINA = Code("5665001", "SCT", "Retina")
_SIDES = {"R": Code("24028007", "SCT", "Right"), "L": Code("7771000", "SCT", "Left")}
_MODALITIES = {
    "CR": "Computed Radiography",
    "DX": "Digital Radiography",
    "RG": "Radiographic imaging",
    "OPT": "Ophthalmic Tomography",
    "OP": "Ophthalmic Photography",
    "OCT": "Optical Coherence Tomography",
    "CT": "Computed Tomography",
    "MR": "Magnetic Resonance",
    "XC": "External-camera Photography",
}
_LONGEST_CODE, _LONGEST_MEANING = 16, 64


def finding_code(label: str) -> Code:
    """Return a label's code from `findings.csv`, else one of octray's own with the label as its meaning."""
    return _table()[label][0] if label in _table() else private_code(label, label)


def private_code(name: str, meaning: str) -> Code:
    """Return a code of octray's own; names that are too long for a Code Value (0008,0100) are hashed."""
    short = name.replace("\\", "/")
    if len(short) > _LONGEST_CODE:
        short = hashlib.sha256(name.encode()).hexdigest()[:_LONGEST_CODE]
    return Code(short, PRIVATE, meaning.replace("\\", "/")[:_LONGEST_MEANING])


def modality_code(name: str) -> Code:
    """Return Modality (0008,0060) as a code of CID 33; `OT` if it is not listed here."""
    return Code(name, "DCM", _MODALITIES[name]) if name in _MODALITIES else Code("OT", "DCM", "Other Modality")


@lru_cache(maxsize=1)
def _table() -> dict[str, tuple[Code, bool]]:
    """Return the code of each label in `findings.csv`, and whether it is a finding of the retina."""
    with (resources.files(__package__) / "findings.csv").open(encoding="utf-8") as file:
        return {
            row["label"]: (Code(row["code"], row["scheme"], row["meaning"]), row["site"] == "retina")
            for row in csv.DictReader(file)
        }


_PROBABILITY = Code("122157", "DCM", "Probability")
_THRESHOLD = Code("122411", "DCM", "Threshold Value")
_STATE = Code("363713009", "SCT", "Has interpretation")
_NO_UNITS = Code("1", "UCUM", "no units")
_IN_QUESTION = {"present": Code("121053", "DCM", "Present"), "absent": Code("121054", "DCM", "Absent")}
_NOT_EXCLUDED = private_code("not-excluded", "Cannot be ruled out")
_DISTANCE = private_code("distance", "Distance from training data, of its threshold")
_FLAG = private_code("quality-flag", "Quality flag")
_RESULT_OF = private_code("result-of", "Result of")
_UNITS_OF_RESULTS = {
    (Level.STUDY, ""): private_code("study", "Whole study"),
    (Level.EYE, "R"): private_code("right-eye", "Right eye or side in this study"),
    (Level.EYE, "L"): private_code("left-eye", "Left eye or side in this study"),
}
_POOLED = private_code("frames-pooled", "Frames that were pooled")
_LEFT_OUT = private_code("frames-left-out", "Files and frames not scored, left out")


def write_structured_report(author: Author, results: Sequence[FramePrediction], levels: Sequence[LevelResult] = ()) -> bytes:
    """Return the report on the scored frames of one instance, and on its study and eyes as a whole if `levels` are given.

    It is UNVERIFIED and preliminary, because nobody has read it, and COMPLETE only if every frame of the instance was scored.
    """
    source = author.source
    algorithms = {label: _algorithm(author, label) for label in author.manifest.labels}
    image = placeholder_image(source)
    groups = [_group(author, result, one, algorithms[one.label], image) for result in results for one in result.predictions]
    groups += [_level_group(author, level, one, results[0].source, image) for level in levels for one in level.predictions]
    report = MeasurementReport(
        observation_context=ObservationContext(observer_person_context=None, observer_device_context=_observer(author)),
        procedure_reported=modality_code(source.modality),
        imaging_measurements=groups[:1],
        referenced_images=[image],
    )
    _set_modality(report[0], source)
    is_complete = len({result.key.frame_number for result in results}) == source.frames
    document = Comprehensive3DSR(
        evidence=[image],
        content=report[0],
        is_complete=is_complete,
        coding_schemes=[_scheme()],
        **author.arguments(Kind.SR, source.instance_number),
    )
    # highdicom copies and searches all groups that it gets: adding all but the first afterwards halves the time of a volume.
    measured = document.ContentSequence[-1].ContentSequence
    measured.extend(group[0] for group in groups[1:])
    if not is_complete:
        document.CompletionFlagDescription = f"{len(results)} of {source.frames} frames were scored"
    return to_file(document, author)


def _set_modality(item: Dataset, source: Source) -> None:
    """Replace the placeholder's modality in the image library by that of the source."""
    for child in item.get("ContentSequence", []):
        if child.ConceptNameCodeSequence[0].CodeValue == codes.DCM.Modality.value:
            child.ConceptCodeSequence = [CodedConcept.from_code(modality_code(source.modality))]
        _set_modality(child, source)


def _observer(author: Author) -> ObserverContext:
    manifest = author.manifest
    device = DeviceObserverIdentifyingAttributes(
        uid=derived_uid(manifest.bundle_id.encode(), "device"),
        name="octray",
        manufacturer_name="octray",
        model_name=manifest.provenance.config_name,
        serial_number=manifest.bundle_id,
    )
    return ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)


def _scheme() -> CodingSchemeIdentificationItem:
    return CodingSchemeIdentificationItem(PRIVATE, name="octray", responsible_organization="octray")


def _group(
    author: Author, result: FramePrediction, one: Prediction, algorithm: AlgorithmIdentification, image: Dataset
) -> MeasurementsAndQualitativeEvaluations:
    source, number = author.source, result.key.frame_number
    _, is_in_retina = _table().get(one.label, (None, False))
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            identifier=f"{one.label}, frame {number}", uid=author.uid(Kind.SR, "tracking", number, one.label)
        ),
        finding_type=finding_code(one.label),
        finding_sites=[_retina(result.facts.laterality)] if is_in_retina else None,
        algorithm_id=algorithm,
        measurements=_measurements(author.manifest, result, one),
        qualitative_evaluations=_evaluations(result, one),
        source_images=[
            SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID, [number] if source.frames > 1 else None)
        ],
    )
    _say_whether_present(group[0], one.state)
    return group


def _level_group(
    author: Author, result: LevelResult, one: LevelPrediction, source: str, image: Dataset
) -> MeasurementsAndQualitativeEvaluations:
    """Return the group of one label in a study or an eye; it refers to those deciding frames that are of this instance."""
    _, is_in_retina = _table().get(one.label, (None, False))
    unit = _UNITS_OF_RESULTS[result.level, result.laterality]
    numbers = [frame.frame_number for frame in one.deciding if frame.source == source]
    deciding = SourceImageForMeasurementGroup(
        image.SOPClassUID, image.SOPInstanceUID, numbers if author.source.frames > 1 else None
    )
    values = ((_PROBABILITY, one.probability), (_THRESHOLD, one.operating_point), (_POOLED, result.frames))
    named = ((_RESULT_OF, unit), (_STATE, _STATES[one.state]))
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            identifier=f"{one.label}, {unit.meaning.lower()}",
            uid=author.uid(Kind.SR, "tracking", result.level, result.laterality, one.label),
        ),
        finding_type=finding_code(one.label),
        finding_sites=[_retina(result.laterality)] if is_in_retina else None,
        algorithm_id=_level_algorithm(author, result, one.label),
        measurements=[
            Measurement(name=name, value=rounded(value), unit=_NO_UNITS)
            for name, value in (*values, (_LEFT_OUT, result.left_out))
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(CodedConcept.from_code(name), CodedConcept.from_code(value)) for name, value in named
        ],
        source_images=[deciding] if numbers else None,
    )
    _say_whether_present(group[0], one.state)
    return group


def _say_whether_present(group: Dataset, state: State) -> None:
    """Say in the item of a group's finding whether it is there (PS3.16 TID 1350): some readers look at findings alone."""
    presence = CodeContentItem(
        CodedConcept.from_code(_PRESENCE),
        CodedConcept.from_code(_PRESENT[state]),
        RelationshipTypeValues.HAS_CONCEPT_MOD,
    )
    for item in group.ContentSequence:
        if item.ConceptNameCodeSequence[0].CodeValue == codes.DCM.Finding.value:
            item.ContentSequence = [presence]


def _retina(laterality: str) -> FindingSite:
    return FindingSite(_RETINA, laterality=_SIDES.get(laterality))


def _algorithm(author: Author, label: str) -> AlgorithmIdentification:
    manifest = author.manifest
    point = next((point for point in manifest.operating_points if point.label == label), None)
    preprocessing = manifest.preprocessing
    parameters = [
        author.warning,
        f"Architecture {manifest.architecture}, input {preprocessing.size} px, fit {preprocessing.fit.value}.",
        f"{manifest.activation.value.capitalize()} of calibrated logits: {manifest.calibration.words}.",
        f"Heatmaps by {manifest.heatmap.method} on a scale from 0 to {manifest.heatmap.full_scale:g}.",
    ]
    if point is not None:
        parameters.append(
            f"Operating point by {point.criterion}: sensitivity {point.sensitivity:.4g} and specificity "
            f"{point.specificity:.4g} on the calibration split."
        )
    return _algorithm_named(manifest, parameters)


def _algorithm_named(manifest: Manifest, parameters: Sequence[str]) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=f"octray {manifest.provenance.config_name}",
        version=f"bundle {manifest.bundle_id}, octray {version()}",
        parameters=[" ".join(parameters)],
        manufacturer="octray",
    )


def _level_algorithm(author: Author, result: LevelResult, label: str) -> AlgorithmIdentification:
    manifest = author.manifest
    rule = next(rule for rule in manifest.levels if rule.level is result.level)
    point = next(point for point in rule.operating_points if point.label == label)
    unit = f"{result.level.value} as a whole, from {result.frames} frames by {words.POOLINGS[result.pooling]}"
    parameters = [
        author.warning,
        f"Result of the {unit}; {result.left_out} files or frames were not scored and are left out.",
        f"Operating point of this level by {point.criterion}: sensitivity {point.sensitivity:.4g} and specificity "
        f"{point.specificity:.4g} on the calibration split.",
    ]
    return _algorithm_named(manifest, parameters)


def _measurements(manifest: Manifest, result: FramePrediction, one: Prediction) -> list[Measurement]:
    threshold = [point.threshold for point in manifest.operating_points if point.label == one.label]
    values: list[tuple[Code, float]] = [(_PROBABILITY, one.probability), *((_THRESHOLD, value) for value in threshold)]
    values.append((_DISTANCE, result.distance))
    return [Measurement(name=name, value=rounded(value), unit=_NO_UNITS) for name, value in values]


def _evaluations(result: FramePrediction, one: Prediction) -> list[QualitativeEvaluation]:
    named = [(_STATE, _STATES[one.state])]
    named += [(_NOT_EXCLUDED, _IN_QUESTION[value]) for value in one.conformal_set]
    flags = dict.fromkeys(flag.check.value for flag in result.flags)
    named += [(_FLAG, private_code(flag, flag.replace("_", " "))) for flag in flags]
    return [QualitativeEvaluation(CodedConcept.from_code(name), CodedConcept.from_code(value)) for name, value in named]

"""Results of studies, eyes and patients in records, tables, report, DICOM and HTTP: everywhere the same, and as in training."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from highdicom.sr import srread
from pyarrow import parquet
from scipy import special

from pipeline.cli.main import main
from pipeline.errors import BundleError
from pipeline.evaluate.calibration import frame_odds
from pipeline.frames import Quarantined
from pipeline.levels import LabelSet, Level, LevelResult, Pooling, level_result, pool
from pipeline.model.bundle import ATTENTION, Bundle, write_bundle
from pipeline.predictions import FramePrediction, State, StudyRecord, Task
from pipeline.results.dicom import Kind
from pipeline.results.dicom.write import write_objects
from pipeline.results.level_results import patient_results, study_results
from pipeline.results.tables import LEVEL_COLUMNS, levels_table
from pipeline.results.worklist import NOT_SCORED, UNCERTAIN, URGENT, Ranking, Study, decisive
from pipeline.score.predictor import Predictor
from services.api.app import create_app
from services.api.options import Settings
from services.api.scoring import _answer
from tests.builders import (
    make_attention,
    make_bundle,
    make_dicom,
    make_frame,
    make_key,
    make_level,
    make_pixels,
    make_prediction,
    make_result,
    with_levels,
)
from tests.dicom_results import MADE, scored
from tests.test_cli_score import contents
from tests.test_job_summary import IDENTITY, everything, make_study, score
from tests.test_results_report import Page, write_studies
from tests.test_services_api import running

EYES = make_level(Level.EYE)
PATIENTS = make_level(Level.PATIENT)


@pytest.fixture
def leveled(tmp_path: Path) -> Bundle:
    return with_levels(make_bundle(tmp_path / "bundle"), make_level(), EYES, PATIENTS)


def frame(pneumonia: float, number: int = 1, side: str = "", source: str = "a.dcm", **more: Any) -> FramePrediction:
    """A frame whose softmax at the temperature 1.5 of the bundle gives this probability."""
    logit = 1.5 * float(special.logit(pneumonia))
    positive = pneumonia >= 0.5
    normal = make_prediction("NORMAL", 1 - pneumonia, not positive, logit=0.0)
    found = make_prediction("PNEUMONIA", pneumonia, positive, logit=logit)
    return replace(make_result(normal, found, source=source, key=make_key(number), laterality=side), **more)


def said(result: LevelResult) -> tuple[float, State]:
    finding = result.predictions[1]
    return round(finding.probability, 3), finding.state


def test_a_study_and_its_eyes_are_pooled_from_their_frames(leveled: Bundle) -> None:
    record = StudyRecord(
        "1.2",
        (frame(0.2, 1, "R"), frame(0.3, 2, "R"), frame(0.9, 1, "L", "b.dcm"), frame(0.1, 1, "", "c.dcm")),
        (
            Quarantined("a.dcm", "blank", "Blank.", 3),
            Quarantined("d.dcm", "truncated", "Cut."),
            Quarantined("e", "no_image", ""),
        ),
    )

    study, right, left = study_results(record, leveled.manifest)

    assert (said(study), said(right), said(left)) == ((0.9, State.POSITIVE), (0.3, State.NEGATIVE), (0.9, State.POSITIVE))
    assert [(one.frames, one.left_out, one.laterality) for one in (study, right, left)] == [
        (4, 2, ""),
        (2, 1, "R"),
        (1, 0, "L"),
    ]
    assert [one.source for one in study.predictions[1].deciding] == ["b.dcm"]
    assert study.predictions[0].state is State.NEGATIVE


def test_a_patient_is_pooled_over_studies(leveled: Bundle) -> None:
    records = [StudyRecord("1", (frame(0.2, 1, "R"),)), StudyRecord("2", (frame(0.7, 1, "R"), frame(0.1, 2, "L")))]

    right, left, patient = patient_results(records, leveled.manifest)

    assert [(one.level, said(one)[0], one.studies, one.frames) for one in (right, left, patient)] == [
        *((Level.EYE, 0.7, 2, 2), (Level.EYE, 0.1, 2, 1), (Level.PATIENT, 0.7, 2, 3)),
    ]


def test_without_a_scored_frame_no_level_has_a_state(leveled: Bundle) -> None:
    (study,) = study_results(StudyRecord("1", (), (Quarantined("a", "truncated", "Cut."),)), leveled.manifest)

    assert (study.predictions, study.left_out) == ((), 1)
    assert study.why_unknown == "None of the images of this study could be scored."


def test_a_bundle_without_levels_has_no_results_of_them(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "bundle").manifest

    assert study_results(StudyRecord("1", (frame(0.9),)), manifest) == ()
    assert patient_results([StudyRecord("1", (frame(0.9),))], manifest) == ()


def test_a_record_that_was_stored_gives_the_same_results(tmp_path: Path) -> None:
    levels = [make_level(level, Pooling.ATTENTION) for level in Level]
    bundle = with_levels(make_bundle(tmp_path / "bundle"), *levels, attention=make_attention())
    frames = Predictor(bundle).predict([make_frame(pixels=make_pixels(seed=seed), laterality="R") for seed in range(5)], False)
    record = StudyRecord("1", tuple(frames))

    again = StudyRecord.from_json(record.to_json())

    assert study_results(again, bundle.manifest) == study_results(record, bundle.manifest)
    assert patient_results([again], bundle.manifest) == patient_results([record], bundle.manifest)


def test_attention_weighs_frames_by_their_features(tmp_path: Path) -> None:
    attention = make_attention()
    bundle = with_levels(make_bundle(tmp_path / "bundle"), make_level(pooling=Pooling.ATTENTION), attention=attention)
    frames = [make_frame(pixels=make_pixels(seed=seed), key=make_key(seed + 1)) for seed in range(4)]
    predictor = Predictor(bundle)
    found = predictor.predict(frames, heatmaps=False)
    grids = np.stack([predictor.admission.admit(one).pixels for one in frames])
    logits, _, (maps,) = predictor.engine.run(grids)
    scores = np.stack([attention.scores(one.mean(axis=(1, 2))) for one in maps])

    (study,) = study_results(StudyRecord("1", tuple(found)), bundle.manifest)

    odds = frame_odds(logits, bundle.manifest.label_set, bundle.manifest.calibration)
    pooled, weights = pool(odds, Pooling.ATTENTION, np.array([True, False]), scores)
    np.testing.assert_allclose([one.probability for one in study.predictions], special.expit(pooled), atol=1e-4)
    assert [one.frame_number for one in study.predictions[1].deciding] == [*(np.argsort(-weights[:, 1])[:3] + 1)]


def test_a_frame_weighs_the_same_whatever_frames_are_scored_with_it(tmp_path: Path) -> None:
    bundle = with_levels(make_bundle(tmp_path / "bundle"), make_level(pooling=Pooling.ATTENTION), attention=make_attention())
    frames = [make_frame(pixels=make_pixels(seed=seed)) for seed in range(5)]
    predictor = Predictor(bundle)

    together = predictor.predict(frames, heatmaps=False)

    assert [one.attention for one in together] == [predictor.predict([one], heatmaps=False)[0].attention for one in frames]


def test_a_bundle_whose_attention_does_not_fit_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    level = make_level(pooling=Pooling.ATTENTION)
    with pytest.raises(BundleError, match=r"no file attention\.safetensors"):
        Predictor(with_levels(bundle, level))
    with pytest.raises(BundleError, match=r"The attention of level study takes 7 features; the graph has 4"):
        Predictor(with_levels(bundle, level, attention=make_attention(channels=7)))
    with pytest.raises(BundleError, match=r"attention\.safetensors of bundle bundle cannot be used"):
        Predictor(with_levels(bundle, level, attention=make_attention(labels=3)))
    other = {name: bundle.read(name) for name in bundle.manifest.files} | {ATTENTION: b"nothing"}
    fields = {name: value for name, value in bundle.manifest if name not in ("schema_version", "bundle_id", "files", "levels")}
    with pytest.raises(BundleError, match="cannot be used"):
        Predictor(write_bundle(bundle.path, other, **fields, levels=(level,)))


def test_the_worklist_ranks_the_study_as_a_whole() -> None:
    ranking, frames = Ranking("NORMAL"), [frame(0.9)]
    labels = LabelSet(("NORMAL", "PNEUMONIA"), Task.MULTICLASS, "NORMAL")
    for offset, rank in ((-9.0, 0), (9.0, URGENT)):
        result = level_result(make_level(offsets=(-offset, offset)), np.array([[-2.0, 2.0]]), [("a.dcm", 1)], labels)
        assert ranking.of_study(frames, [result])[0] == rank
    unsure = replace(result, predictions=(replace(result.predictions[1], state=State.UNCERTAIN),))
    assert ranking.of_study(frames, [unsure])[0] == UNCERTAIN
    assert ranking.of_study(frames, [replace(result, level=Level.EYE)]) == ranking.of_study(frames)
    assert ranking.of_study([], [replace(result, predictions=())]) == (NOT_SCORED, 0.0)


def as_text(value: str | float | bool | None) -> str:
    """A value of the typed table as the table of text has it."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "levels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two studies of a patient, one of a patient with the same ID and another birth date, one of nobody, and a cut file."""
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(make_study(1, ImageLaterality="R"))
    (folder / "b.dcm").write_bytes(make_study(2, ImageLaterality="R"))
    (folder / "c.dcm").write_bytes(make_study(3, PatientBirthDate="19800101"))
    (folder / "d.dcm").write_bytes(make_study(4, **dict.fromkeys((*IDENTITY, "PatientID"), "")))
    (folder / "e.dcm").write_bytes(make_study(5, PatientName="Cutoff^Clara", PatientID="5")[:-500])
    return folder


def test_the_table_has_each_study_eye_and_patient(studies: Path, leveled: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"

    score(studies, leveled, out)

    found = rows(out)
    assert tuple(found[0]) == tuple(LEVEL_COLUMNS)
    typed = parquet.read_table(out / "levels.parquet")
    assert {str(typed.schema.field(name).type) for name in ("studies", "positive", "probability")} == {
        "int32",
        "bool",
        "double",
    }
    assert [{name: as_text(value) for name, value in row.items()} for row in typed.to_pylist()] == found
    unit = ("level", "study_instance_uid", "patient", "laterality")
    about = [tuple(one[name] for name in unit) for one in found if one["label"] != "NORMAL"]
    assert about == [
        *(("study", "1.2.1", "", ""), ("eye", "1.2.1", "", "R"), ("study", "1.2.2", "", ""), ("eye", "1.2.2", "", "R")),
        *(("study", "1.2.3", "", ""), ("study", "1.2.4", "", ""), ("study", "1.2.5", "", "")),
        *(("eye", "", "patient-00001", "R"), ("patient", "", "patient-00001", "")),
        *(("patient", "", "patient-00002", ""), ("patient", "", "patient-00003", "")),
    ]
    both = [one for one in found if one["patient"] == "patient-00001" and one["level"] == "patient"]
    assert {(one["studies"], one["frames"], one["left_out"], one["pooling"]) for one in both} == {("2", "2", "0", "max")}
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        frames = [one for one in csv.DictReader(file) if one["label"] == "PNEUMONIA"]
    most = max((one for one in frames if one["study_instance_uid"] in ("1.2.1", "1.2.2")), key=lambda one: one["probability"])
    pneumonia = next(one for one in both if one["label"] == "PNEUMONIA")
    assert pneumonia["probability"] == most["probability"]
    assert (pneumonia["deciding_source"], pneumonia["deciding_frame_number"]) == (most["source"], "1")
    cut = [one for one in found if one["state"] == "not_scorable"]
    assert [one["level"] for one in cut] == ["study", "patient"]
    assert {(one["label"], one["frames"], one["left_out"], one["probability"]) for one in cut} == {("", "0", "1", "")}


def test_nothing_of_a_patient_is_kept_and_going_on_gives_the_same_bytes(
    studies: Path, leveled: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    score(studies, leveled, out)
    before = contents(out)

    score(studies, leveled, out)

    assert "processed in this run: 0." in capsys.readouterr().err
    assert contents(out) == before
    for secret in (b"Quillfeather", b"MRN-77120", b"19560307", b"1956-03-07"):
        assert not [name for name, content in everything(out) if secret in content]


def test_a_study_whose_files_are_gone_has_no_patient(studies: Path, leveled: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    score(studies, leveled, out)
    assert {one["studies"] for one in rows(out) if one["patient"] == "patient-00001"} == {"2"}
    (studies / "a.dcm").unlink()

    score(studies, leveled, out)

    patients = {(one["patient"], one["studies"]) for one in rows(out) if one["level"] == "patient"}
    assert patients == {(f"patient-{number:05d}", "1") for number in (1, 2, 3)}


def test_without_levels_there_is_no_table_and_the_report_is_as_before(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"

    report = score(studies, bundle, out)

    assert not (out / "levels.csv").exists()
    assert "A study is ranked by its most urgent frame." in report
    assert "This study" not in report


def test_a_table_of_levels_is_removed_with_the_results_of_its_bundle(studies: Path, leveled: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    score(studies, leveled, out)

    score(studies, make_bundle(tmp_path / "plain"), out)

    assert not list(out.glob("levels.*"))


def test_the_report_shows_every_level_and_what_decided(tmp_path: Path, leveled: Bundle) -> None:
    first = StudyRecord("1", (frame(0.2, 1, "R"), frame(0.9, 2, "L")), (Quarantined("b.dcm", "blank", "Blank."),))
    second = StudyRecord("2", (frame(0.7, 1, "R", "c.dcm"),))
    levels = (*study_results(first, leveled.manifest), patient_results([first, second], leveled.manifest)[-1])
    study = Study("1", Ranking("NORMAL").sorted(first.frames), first.failures, URGENT, levels=levels)

    page = Page(write_studies(tmp_path, leveled, [study])).text

    assert "This study: PNEUMONIA 90.0 % positive (2 images, pooled by the largest probability, 1 image not scored" in page
    assert "PNEUMONIA was decided by frame 2." in page
    assert "Right: PNEUMONIA 20.0 % negative (1 image, pooled by" in page
    assert "Patient in 2 studies: PNEUMONIA 90.0 % positive (3 images" in page
    assert "All images" not in page
    assert "A study is ranked by its result as a whole" in page
    assert "studythe largest probabilityNo finding50.0 %95.0 %85.0 %" in page  # cells


def test_a_finding_in_single_images_alone_is_noted(tmp_path: Path) -> None:
    bundle = with_levels(make_bundle(tmp_path / "bundle"), make_level(offsets=(5.0, -5.0)))
    record = StudyRecord("1", (frame(0.9),))
    study = Study("1", record.frames, levels=study_results(record, bundle.manifest))

    page = Page(write_studies(tmp_path, bundle, [study])).text

    assert "positive in single images only: PNEUMONIA" in page
    assert re.search(r"PNEUMONIA 5\.7 % negative", page)


def test_a_study_without_a_scored_frame_says_so_in_the_report(tmp_path: Path, leveled: Bundle) -> None:
    record = StudyRecord("1", (), (Quarantined("a.dcm", "truncated", "Cut."),))
    study = Study("1", (), record.failures, NOT_SCORED, levels=study_results(record, leveled.manifest))

    page = Page(write_studies(tmp_path, leveled, [study])).text

    assert "This study: not scored None of the images of this study could be scored." in page


def test_the_structured_report_has_a_group_for_each_label_of_the_study_and_its_eyes(tmp_path: Path) -> None:
    bundle = with_levels(make_bundle(tmp_path / "bundle"), make_level(pooling=Pooling.NOISY_OR), EYES)
    content = make_dicom(np.zeros((3, 20, 20), np.uint8), ImageLaterality="R")
    results = tuple(
        replace(one, predictions=frame(0.2 + 0.3 * number).predictions)
        for number, one in enumerate(scored(content, bundle.manifest, tmp_path))
    )
    record = StudyRecord("1", results, (Quarantined("x.dcm", "truncated", "Cut."),))
    levels = study_results(record, bundle.manifest)

    plain, found = (
        srread(io.BytesIO(dict(write_objects(content, results, bundle.manifest, [Kind.SR], MADE, levels=some)).popitem()[1]))
        for some in ((), levels)
    )

    assert plain.SOPInstanceUID != found.SOPInstanceUID
    groups = found.content.get_image_measurement_groups()
    assert len(groups) == len(plain.content.get_image_measurement_groups()) + 4
    study, eye = groups[-3], groups[-1]
    named = {
        item.name.meaning: item.value.meaning if hasattr(item.value, "meaning") else float(item.value)
        for item in (*study.get_measurements(), *study.get_qualitative_evaluations())
    }
    expected = levels[0].predictions[1]
    assert named == {
        "Probability": pytest.approx(expected.probability, abs=1e-4),
        "Threshold Value": 0.5,
        "Frames that were pooled": 3.0,
        "Files and frames not scored, left out": 1.0,
        "Result of": "Whole study",
        "Has interpretation": "Positive",
    }
    assert study.tracking_identifier == "PNEUMONIA, whole study"
    assert eye.tracking_identifier == "PNEUMONIA, right eye or side in this study"
    text = json.dumps(found.to_json_dict())
    assert "Result of the study as a whole, from 3 frames by noisy-or; 1 files or frames were not scored" in text


def test_the_service_answers_as_the_folder_does(tmp_path: Path) -> None:
    attention = make_attention()
    levels = [make_level(level, Pooling.ATTENTION, scales=(0.7, 1.3)) for level in Level]
    bundle = with_levels(make_bundle(tmp_path / "bundle"), *levels, attention=attention)
    folder, out = tmp_path / "studies", tmp_path / "results"
    folder.mkdir()
    pages = [make_study(1, ImageLaterality=side, SOPInstanceUID=f"1.2.1.9.{number}") for number, side in enumerate("RRL")]
    for number, content in enumerate(pages):
        (folder / f"{number}.dcm").write_bytes(content)
    score(folder, bundle, out)

    with running(create_app(bundle, Settings())) as client:
        answer = ask(client, folder)
        model = client.get("/v1/model").json()

    table = {(one["level"], one["laterality"], one["label"]): one for one in rows(out)}
    assert answer["aggregation"] == "study_level"
    assert [(one["level"], one["laterality"]) for one in answer["levels"]] == [
        *(("study", ""), ("eye", "R"), ("eye", "L"), ("patient", "")),
    ]
    for level in answer["levels"]:
        assert (level["pooling"], level["why_unknown"], level["left_out"]) == ("attention", "", 0)
        for label, one in level["labels"].items():
            row = table[level["level"], level["laterality"], label]
            assert f"{one['probability']:.4f}" == row["probability"]
            assert (one["state"], level["frames"]) == (row["state"], int(row["frames"]))
            first = one["deciding_frames"][0]
            assert (first["source"], f"{first['weight']:.4f}") == (row["deciding_source"], row["deciding_weight"])
            assert sum(each["weight"] for each in one["deciding_frames"]) == pytest.approx(1)
    study = answer["levels"][0]["labels"]
    assert answer["states"] == {label: one["state"] for label, one in study.items()}
    assert answer["probabilities"] == {label: one["probability"] for label, one in study.items()}
    assert [one["pooling"] for one in model["levels"]] == ["attention"] * 3


def ask(client: TestClient, folder: Path) -> Any:
    sent = [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
    return client.post("/v1/predict?heatmaps=false", files=sent).json()


def test_the_service_without_levels_answers_as_before(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.dcm").write_bytes(make_dicom())

    with running(create_app(bundle, Settings())) as client:
        answer = ask(client, tmp_path / "a")

    assert (answer["aggregation"], answer["levels"]) == ("any_finding", [])


GRADES = ("NORMAL", "MILD", "SEVERE")
WORST_LAST = np.array([(0.05, 0.9, 0.05), (0.02, 0.03, 0.95), (0.98, 0.01, 0.01)])


@pytest.fixture
def mixed() -> StudyRecord:
    """A study of three frames: a mild one, a severe one, and one without a finding."""
    frames = []
    for number, chances in enumerate(WORST_LAST, start=1):
        named = zip(GRADES, chances, strict=True)
        found = [make_prediction(label, chance, chance >= 0.5, logit=float(1.5 * np.log(chance))) for label, chance in named]
        frames.append(make_result(*found, source="0/a.dcm", key=make_key(number), laterality="R"))
    return StudyRecord("1.2", tuple(frames))


def test_a_study_an_eye_and_a_patient_have_one_grade_each(tmp_path: Path, mixed: StudyRecord) -> None:
    levels = [make_level(level, labels=GRADES, scales=(1.0, 1.0), offsets=(0.0, 0.0)) for level in Level]
    bundle = with_levels(make_bundle(tmp_path / "bundle", labels=GRADES, task="ordinal"), *levels)
    found = (*study_results(mixed, bundle.manifest), patient_results([mixed], bundle.manifest)[-1])
    ranking = Ranking("NORMAL", ("SEVERE", "MILD"))
    study = Study("1.2", ranking.sorted(mixed.frames), levels=found, rank=ranking.of_study(mixed.frames, found)[0])

    with levels_table(tmp_path / "levels.csv", bundle.manifest.bundle_id) as add:
        for one in found:
            add(one, "1.2", "")
    page = Page(write_studies(tmp_path, bundle, [study])).text
    answer = _answer(mixed, bundle.manifest, uid="1.2", frames=[], failures=[], without_image=[], skipped=0)

    for row in rows(tmp_path):
        expected = dict(zip(GRADES, (0.02, 0.03, 0.95), strict=True))[row["label"]]
        assert float(row["probability"]) == pytest.approx(expected, abs=1e-3)
        assert row["positive"] == ("true" if row["label"] == "SEVERE" else "false")
    assert {level.level for level in answer.levels} == set(Level)
    assert answer.states == {"NORMAL": "negative", "MILD": "negative", "SEVERE": "positive"}
    assert "This study: SEVERE 95.0 % positive (3 images" in page
    assert "MILD" not in page.split("This study:")[1].split("Frame")[0]


def test_a_study_has_one_grade_if_its_bundle_has_no_levels(tmp_path: Path, mixed: StudyRecord) -> None:
    bundle = make_bundle(tmp_path / "bundle", labels=GRADES, task="ordinal")
    study = Study("1.2", Ranking("NORMAL").sorted(mixed.frames))

    page = Page(write_studies(tmp_path, bundle, [study])).text
    answer = _answer(mixed, bundle.manifest, uid="1.2", frames=[], failures=[], without_image=[], skipped=0)

    assert answer.aggregation == "any_finding"
    assert answer.probabilities == pytest.approx({"NORMAL": 0.02, "MILD": 0.03, "SEVERE": 0.95})
    assert answer.positive == {"NORMAL": False, "MILD": False, "SEVERE": True}
    together = decisive([one.predictions for one in mixed.frames], bundle.manifest.label_set)
    assert [(one.label, one.state) for one in together] == [
        *(("NORMAL", State.NEGATIVE), ("MILD", State.NEGATIVE), ("SEVERE", State.POSITIVE)),
    ]
    assert "All images: SEVERE 95.0 % positive" in page
    assert "also positive: MILD" not in page


def test_a_grade_that_no_frame_calls_uncertain_may_be_uncertain_together() -> None:
    milder_or_worse = [make_prediction("NORMAL", 0.5, state=State.UNCERTAIN), make_prediction("MILD", 0.0, False)]
    milder_or_worse.append(make_prediction("SEVERE", 0.5, state=State.UNCERTAIN))
    mild = [make_prediction("NORMAL", 0.0, False), make_prediction("MILD", 1.0, True), make_prediction("SEVERE", 0.0, False)]

    together = decisive([milder_or_worse, mild], LabelSet(GRADES, Task.ORDINAL, "NORMAL"))

    assert [one.state for one in together] == [State.NEGATIVE, State.UNCERTAIN, State.UNCERTAIN]
    assert together[1].probability == 1.0


VOLUMES = """
name: volumes
data: {normal_label: NORMAL, modalities: [OPT]}
preprocessing: {size: 64}
model: {architecture: test_resnet, weights: none}
train: {threads: 1, head: {weight_decays: [0.1], epochs: 30}}
levels: {study: attention, patient: none}
evaluate: {bootstrap: 100}
tracking: {enabled: false}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic OCT volumes, and a bundle that was trained on them."""
    root = tmp_path_factory.mktemp("volumes")
    (root / "volumes.yaml").write_text(VOLUMES)
    assert main(["phantom", str(root), "--modality", "oct", "--studies", "36", "--seed", "2"]) == 0
    labels = ["--labels", str(root / "labels.csv"), "--split", "40/20/20/20"]
    assert main(["ingest", str(root / "studies"), *labels, "--out", str(root / "index")]) == 0
    assert main(["train", str(root / "volumes.yaml"), "--index", str(root / "index"), "--out", str(root / "bundle")]) == 0
    return root


@pytest.mark.slow
def test_training_measures_what_scoring_gives(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.frames import Split
    from pipeline.ingest.index import load_index
    from pipeline.model.bundle import METRICS, load_bundle

    bundle, index = load_bundle(trained / "bundle"), load_index(trained / "index")
    metrics = json.loads(bundle.read(METRICS))
    study = metrics["evaluation"]["levels"]["study"]
    capsys.readouterr()
    assert main(["evaluate", str(bundle.path), "--index", str(trained / "index"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["levels"]["study"]
    assert (again["studies"], again["patients"]) == (study["studies"], study["patients"])
    assert again["macro"]["brier"]["value"] == pytest.approx(study["macro"]["brier"]["value"], abs=0.01)
    assert main(["evaluate", str(bundle.path), "--index", str(trained / "index")]) == 0
    assert "Studies\n=======\n" in capsys.readouterr().out
    assert main(["score", str(trained / "studies"), "--bundle", str(bundle.path), "--out", str(tmp_path / "out")]) in (0, 1)
    test = {record.key.study_instance_uid for record in index.of(Split.TEST)}
    scored_rows = [one for one in rows(tmp_path / "out") if one["study_instance_uid"] in test and one["level"] == "study"]
    truths = {(record.key.study_instance_uid, label): 0 for record in index.of(Split.TEST) for label in bundle.manifest.labels}
    for record in index.of(Split.TEST):
        for label, value in record.labels.items():
            truths[record.key.study_instance_uid, label] |= bool(value) and label != "NORMAL"
    for label, found in study["labels"].items():
        if label == "NORMAL":
            continue
        some = [one for one in scored_rows if one["label"] == label]
        ill = [one for one in some if truths[one["study_instance_uid"], label]]
        assert (found["n_positive"], found["n_negative"]) == (len(ill), len(some) - len(ill))
        sensitivity = sum(one["state"] == "positive" for one in ill) / len(ill)
        assert found["metrics"]["sensitivity"]["value"] == pytest.approx(sensitivity)
    assert (metrics["levels"]["study"]["pooling"], metrics["levels"]["patient"]) == (
        "attention",
        {"not_fitted": "The configuration leaves it out."},
    )
    card = (bundle.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "## Studies, eyes and patients" in card
    assert "**Result of the study**: pooled by attention" in card
    assert "- patient: The configuration leaves it out." in card

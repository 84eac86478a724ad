"""Promotion: which bundle becomes the champion, why others are refused, and how often the split was used."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import load_text

from pipeline.cli.main import main
from pipeline.errors import ConfigError, InputError, TrackingError
from pipeline.frames import Split
from pipeline.ingest.index import load_index, write_index
from pipeline.model.bundle import Bundle, load_bundle, write_bundle
from pipeline.predictions import Calibration
from pipeline.train.assessment import bundle_sample
from pipeline.train.promotion import PromotionRequirements, _Gate, load_requirements, promote
from pipeline.train.tracking import register_bundle
from tests.builders import make_sample
from tests.conftest import Trained
from tests.server_mlflow import mlflow_server
from tests.server_postgres import find_programs

LENIENT = "most_uses: 4\nfewest_patients: 2\nmost_ece: 0.9\nauroc_margin: 0.02\nlog_loss_margin: 0.05\n"
NAME = "octray-tiny"


@pytest.fixture(scope="module")
def index(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test split of another index, kept for promotion."""
    given, path = load_index(trained.index), tmp_path_factory.mktemp("promotion") / "index"
    kept = {Split.TEST: Split.PROMOTION}
    records = tuple(replace(one, split=kept.get(one.split, one.split)) for one in given.records)
    write_index(path, replace(given, records=records))
    return path


@pytest.fixture(scope="module")
def variants(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The trained bundle, one like it, and one that is far too sure that all frames are normal; none has a run."""
    folder, bundle = tmp_path_factory.mktemp("variants"), load_bundle(trained.bundle)
    contents = {name: bundle.read(name) for name in bundle.manifest.files}
    fields = {name: getattr(bundle.manifest, name) for name in type(bundle.manifest).model_fields}
    for name in ("schema_version", "bundle_id", "files"):
        del fields[name]

    def made(name: str, **changes: Any) -> Bundle:
        origin = bundle.manifest.provenance.model_copy(update={"mlflow_run_id": "", "config_name": name})
        return write_bundle(folder / name, contents, **(fields | {"provenance": origin} | changes))

    return {
        "first": made("first"),
        "equal": made("equal"),
        "biased": made("biased", calibration=Calibration(temperatures=(1.0, 1.0), offsets=(5.0, 0.0))),
    }


@pytest.fixture
def place(trained: Trained, tmp_path: Path, variants: dict[str, Bundle]) -> list[str]:
    """A store in which all of them are registered."""
    store = shutil.copy(trained.store, tmp_path / "mlflow.db")
    words = [f"tracking.uri=sqlite:///{store}", "tracking.experiment=promotions", f"tracking.model_name={NAME}-promoted"]
    for bundle in variants.values():
        register_bundle(bundle, words)
    return words


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(LENIENT)
    return path


def client_of(place: list[str]) -> MlflowClient:
    return MlflowClient(place[0].partition("=")[2])


def test_a_promotion_that_is_refused_leaves_the_champion_and_says_why(
    place: list[str], policy: Path, index: Path, variants: dict[str, Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*place, "--index", str(index), "--policy", str(policy)]
    client, name = client_of(place), f"{NAME}-promoted"
    assert main(["promote", str(variants["first"].path), *words]) == 0
    assert capsys.readouterr().out == f"version 1 of {name} is the champion\n"
    assert main(["promote", str(variants["biased"].path), *words]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (sentence,) = [line for line in said.err.splitlines() if line.startswith("octray: ")]
    assert sentence.startswith("octray: Version 3 was refused: The log loss is not shown to be as good as the champion's: +")
    assert str(client.get_model_version_by_alias(name, "champion").version) == "1"
    assert str(client.get_model_version_by_alias(name, "candidate").version) == "3"
    refused = client.get_model_version(name, "3")
    assert refused.tags["octray.promotion"].startswith("The log loss is not shown")
    logged = json.loads(load_text(f"{client.get_run(refused.run_id).info.artifact_uri}/promotion/version-3-use-2.json"))
    assert logged["reasons"] == [refused.tags["octray.promotion"]]
    assert logged["figures"]["differences"]["auroc"] == [0.0, 0.0, 0.0]
    assert main(["promote", str(variants["equal"].path), *words]) == 0
    assert capsys.readouterr().out == f"version 2 of {name} is the champion, in place of version 1\n"
    assert client.get_model_version(name, "2").tags["octray.promotion"] == "passed, as use 3 of the split"


def test_each_use_of_the_split_is_counted_and_the_last_one_is_the_last(
    place: list[str], policy: Path, index: Path, variants: dict[str, Bundle], tmp_path: Path
) -> None:
    asked, given = load_requirements(policy), load_index(index)
    renamed = write_index(tmp_path / "ingested-again", given)
    found = [promote(variants["first"], one, asked, place).uses for one in (given, renamed, given, given)]
    assert found == [1, 2, 3, 4]
    with pytest.raises(InputError, match=r"^The split promotion has been used 4 times for octray-tiny-promoted, as often as"):
        promote(variants["equal"], given, asked, place)
    (tag,) = [value for key, value in client_of(place).get_registered_model(f"{NAME}-promoted").tags.items() if "uses" in key]
    assert tag == "4"


def test_a_champion_with_other_labels_costs_no_use_of_the_split(
    place: list[str], policy: Path, index: Path, variants: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, given, client = load_requirements(policy), load_index(index), client_of(place)
    promote(variants["first"], given, asked, place)
    before = client.get_registered_model(f"{NAME}-promoted").tags
    other = replace(variants["first"], manifest=variants["first"].manifest.model_copy(update={"labels": ("NORMAL", "DME")}))
    monkeypatch.setattr("pipeline.train.promotion.load_bundle", lambda _: other)
    with pytest.raises(InputError, match=r"^The champion is a multiclass bundle of NORMAL, DME, this a multiclass bundle of"):
        promote(variants["equal"], given, asked, place)
    assert client.get_registered_model(f"{NAME}-promoted").tags == before


def test_few_patients_bad_calibration_and_a_weak_group_are_reasons(
    index: Path, variants: dict[str, Bundle], place: list[str]
) -> None:
    strict = PromotionRequirements.model_validate(
        {
            "fewest_patients": 5,
            "most_ece": 0.001,
            "subgroups": {"columns": ["modality"], "fewest_patients": 1, "least_auroc": 1.0},
        }
    )
    given = load_index(index)
    found = promote(variants["biased"], given, strict, place)
    records = given.of(Split.PROMOTION)
    patients = len({one.patient_key for one in records if one.labels["NORMAL"]})
    assert found.reasons[0] == (
        f"The label NORMAL occurs in {patients} patients of the split and is absent in "
        f"{len({one.patient_key for one in records if one.labels['PNEUMONIA']})}; 5 are needed."
    )
    sample = bundle_sample(variants["biased"], given, split="promotion")
    assert found.figures["labels"]["NORMAL"]["ece"] == pytest.approx(
        abs(sample.probabilities[:, 0].mean() - np.nanmean(sample.targets[:, 0]))
    ), "all probabilities lie in one bin"
    assert any(reason.startswith("Probabilities of NORMAL are off by ") for reason in found.reasons)
    groups = found.figures["subgroups"]
    assert set(groups) <= {f"modality {one}" for one in {record.modality for record in records}}
    weak = [(group, label) for group, areas in groups.items() for label, area in areas.items() if area < 1]
    said = [reason for reason in found.reasons if "in the group" in reason]
    assert len(said) == len(weak)
    with pytest.raises(Exception, match="RESOURCE_DOES_NOT_EXIST|not found"):
        client_of(place).get_model_version_by_alias(f"{NAME}-promoted", "champion")


def test_a_bundle_that_is_worse_at_ranking_is_refused() -> None:
    sample = make_sample(n=240)
    worse = replace(sample, logits=sample.logits - 1.5 * sample.targets)
    gate = _Gate(None, NAME, "", PromotionRequirements())
    figures: dict[str, Any] = {}
    reasons = list(gate._beside(sample, worse, figures))
    assert reasons[0].startswith("The mean AUROC is not shown to be as good as the champion's: -")
    assert figures["differences"]["auroc"][2] < 0
    assert not [one for one in gate._beside(worse, sample, figures) if "AUROC" in one]


def test_what_cannot_be_promoted_is_said(
    trained: Trained, index: Path, variants: dict[str, Bundle], tmp_path: Path, place: list[str]
) -> None:
    with pytest.raises(InputError, match=r"has no split promotion\. Ingest with a fifth share"):
        promote(variants["first"], load_index(trained.index), overrides=place)
    with pytest.raises(TrackingError, match=r"is no version of never\. Register it first: octray bundle register first$"):
        promote(variants["first"], load_index(index), overrides=[*place[:2], "tracking.model_name=never"])
    with pytest.raises(ConfigError, match="only settings of tracking"):
        promote(variants["first"], load_index(index), overrides=["train.seed=1"])
    (tmp_path / "wrong.yaml").write_text("most_used: 3")
    with pytest.raises(ConfigError, match=r"^wrong\.yaml: most_used: "):
        load_requirements(tmp_path / "wrong.yaml")


def test_the_requirements_that_come_with_octray_are_its_defaults() -> None:
    shipped, standard = load_requirements(), PromotionRequirements()
    assert shipped.model_copy(update={"subgroups": standard.subgroups}) == standard
    assert shipped.subgroups.model_copy(update={"columns": ()}) == standard.subgroups


@pytest.fixture(scope="module")
def on_postgres(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server on a new PostgreSQL database."""
    assert find_programs() is not None
    folder = tmp_path_factory.mktemp("on-postgres")
    with mlflow_server(postgres_url.replace("postgresql://", "postgresql+pg8000://"), folder / "artifacts") as url:
        yield url


@pytest.mark.slow
def test_registration_and_promotion_on_a_server_with_postgresql(
    on_postgres: str, index: Path, variants: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "240")  # a machine that is busy is not the subject
    place = [f"tracking.uri={on_postgres}", "tracking.model_name=served"]
    for number, name in enumerate(("first", "biased"), 1):
        assert register_bundle(variants[name], place).version == str(number)
    asked, given = PromotionRequirements(fewest_patients=2, most_ece=0.9), load_index(index)
    assert promote(variants["first"], given, asked, place).reasons == ()
    refused = promote(variants["biased"], given, asked, place)
    assert refused.reasons[0].startswith("The log loss is not shown to be as good")
    client = MlflowClient(on_postgres)
    assert str(client.get_model_version_by_alias("served", "champion").version) == "1"
    assert [value for key, value in client.get_registered_model("served").tags.items() if "uses" in key] == ["2"]
    run = client.get_run(client.get_model_version("served", "1").run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_auroc"] == pytest.approx(
        json.loads(variants["first"].read("metrics.json"))["evaluation"]["macro"]["auroc"]["value"]
    )

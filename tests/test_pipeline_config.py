"""Configurations: every fault at once, with the nearest valid key."""

from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.settings import Check, Policy


def faults(source: str | Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return caught.value.faults


@pytest.mark.parametrize("name", ["xray", "oct.yaml", "smoke"])
def test_shipped_configurations_are_valid(name: str) -> None:
    assert load_config(name).name == name.removesuffix(".yaml")


def test_three_faults_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntrain: {sead: 1}\npreprocessing: {size: 7}\ntask: detection\n", encoding="utf-8")
    found = faults(path)
    assert len(found) == 3
    assert any("train.sead is not a setting of octray. Did you mean train.seed?" in fault for fault in found)
    assert any(fault.startswith("preprocessing.size: Input should be greater than or equal to 32") for fault in found)
    assert any(fault.startswith("task: Input should be 'binary', 'multiclass', 'multilabel' or 'ordinal'") for fault in found)


def test_overrides_win_and_are_read_as_yaml() -> None:
    config = load_config("xray", ["train.seed=7", "data.labels=[A, B]", "data.normal_label=null", "model.weights=none"])
    assert config.train.seed == 7
    assert config.data.labels == ("A", "B")
    assert config.data.normal_label is None
    assert config.model.weights == "none"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.seed", "must have the form section.key=value"),
        ("name.inner=1", "which is not a section"),
        ("train.seed=[", "is not valid YAML"),
        ("train.finetune.epoch=1", "Did you mean train.finetune.epochs?"),
        ("model.input_range=[255, 0]", "model.input_range: black must be below white, for example [-1024, 1024]"),
        ("model.input_range=[0]", "model.input_range"),
        ("model.blocks=[10, 8]", "model.blocks: blocks are named once each, in rising order, for example [8, 10]"),
        ("model.blocks=[0]", "model.blocks.0: Input should be greater than or equal to 1"),
        ("model.mean=[0.5]", "model: mean and std belong together; give both, or none of them"),
        ("train.seed=4294967296", "train.seed: Input should be less than 4294967296"),
        ("train.finetune.learning_rate=.inf", "train.finetune.learning_rate: Input should be a finite number"),
        ("data.labels=[A, B, A]", "data.labels: a label is named twice; leave one out"),
        ("data.urgency=[A, B, A]", "data.urgency: a label is named twice; leave one out"),
        ("model.std=[0.0]", "model.std.0: Input should be greater than 0"),
    ],
)
def test_an_override_that_cannot_be_used_says_why(override: str, expected: str) -> None:
    assert expected in faults("xray", override)[0]


def test_a_missing_configuration_names_the_shipped_ones(tmp_path: Path) -> None:
    (found,) = faults(tmp_path / "absent.yaml")
    assert found == (
        "There is no configuration absent.yaml. Give a file, or one of oct-best.yaml, oct.yaml, smoke.yaml, xray-best.yaml, "
        "xray.yaml."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [", "mine.yaml is not valid YAML at line 2."), ("- 1", "must be a mapping"), ("{}", "name is missing")],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{text}\n", encoding="utf-8")
    assert expected in faults(path)[0]


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: \xff\xfe\x00")
    assert faults(path)[0].startswith(("mine.yaml is not valid YAML", "name: "))


def test_published_settings_name_no_server_and_no_folder() -> None:
    overrides = ["tracking.uri=postgresql://me:secret@host/db", "model.weights=/home/me/mine.safetensors"]
    published = load_config("xray", overrides).published()
    assert published["model"]["weights"] == "mine.safetensors"
    assert "secret" not in str(published)
    assert load_config("xray").published()["model"]["weights"] == "bundled"


@pytest.mark.parametrize(("text", "exact"), [("ignore", False), ("flag", True), ("reject", True)])
def test_frames_are_decoded_whole_where_text_is_looked_for(text: str, exact: bool) -> None:
    assert load_config("xray", [f"quality.burned_in_text={text}"]).network_preprocessing().exact_decoding is exact
    assert load_config("xray", ["preprocessing.exact_decoding=true"]).network_preprocessing().exact_decoding


def test_labels_are_compared_in_one_form_of_unicode() -> None:
    config = load_config("xray", ["data.labels=[O\u0308dem, NORMAL]", "data.normal_label=O\u0308dem"])
    assert (config.data.labels, config.data.normal_label) == (("\u00d6dem", "NORMAL"), "\u00d6dem")


def test_ages_reach_the_gate_and_an_unknown_one_is_never_refused() -> None:
    config = load_config("xray", ["data.ages=[0, 17]"])
    assert config.gate().intended_use.ages == (0, 17)
    assert config.gate().quality.policy(Check.UNKNOWN_AGE) is Policy.FLAG
    with pytest.raises(ConfigError, match="youngest age must come before the oldest"):
        load_config("xray", ["data.ages=[17, 0]"])
    with pytest.raises(ConfigError, match="quality.unknown_age"):
        load_config("xray", ["quality.unknown_age=reject"])


def test_values_are_changed_by_their_keys_and_the_others_stay() -> None:
    before = load_config("smoke", ["train.finetune.epochs=3"])
    after = before.changed({"train.seed": 5, "train.finetune": {"groups": 1}, "preprocessing.size": 96})
    assert (after.train.seed, after.train.finetune.groups, after.preprocessing.size) == (5, 1, 96)
    assert after.train.finetune == before.train.finetune.model_copy(update={"groups": 1})
    assert before.changed({}) == before
    with pytest.raises(ConfigError) as caught:
        before.changed({"train.sed": 1, "train.seed.x": 2})
    assert "train.sed is not a setting of octray. Did you mean train.seed?" in caught.value.faults
    assert any(fault.startswith("train.seed: Input should be a valid integer") for fault in caught.value.faults)


@pytest.mark.parametrize(("written", "read"), [("NO", "False"), ("0", "0"), ("1.5", "1.5"), ("null", "None")])
def test_a_label_that_yaml_reads_as_something_else_is_to_be_quoted(tmp_path: Path, written: str, read: str) -> None:
    (tmp_path / "c.yaml").write_text(f"name: c\ndata:\n  labels: [AMD, {written}]\n")
    with pytest.raises(
        ConfigError, match=rf"data.labels.1: .* Got {read} instead\. YAML reads .* write \"NO\" or \"0\" in quotes"
    ):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(f'name: c\ndata:\n  labels: [AMD, "{written}"]\n')
    assert load_config(tmp_path / "c.yaml").data.labels == ("AMD", written)

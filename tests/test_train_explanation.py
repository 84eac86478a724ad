"""Checks of heatmaps: a lawful map passes, one that ignores the network or the picture fails."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.frames import FloatArray, Split
from pipeline.imaging.sources import locate, read_frames
from pipeline.model.bundle import ExplanationCheck, HeatmapSupport, load_bundle
from pipeline.model.engine import Engine
from pipeline.model.ensemble import Ensemble
from pipeline.model.export import export_graph, map_support
from pipeline.model.networks import Network, create_network
from pipeline.predictions import Activation, Average
from pipeline.train.explanation import Examined, Masks, check_explanations, full_scale, lesion_masks
from tests.builders import make_support
from tests.conftest import Trained

SIZE, CELLS = 64, 2


def no_masks(_: tuple[int, int]) -> Masks:
    return {}


def answering(*networks: Network) -> Ensemble:
    return Ensemble([Engine(export_graph(one, SIZE)) for one in networks], Average.LOGIT, Activation.SOFTMAX)


@pytest.fixture(scope="module")
def examined() -> Examined:
    """A small network that was taught where a bright square lies."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = create_network("test_resnet", 2)
    pixels = torch.rand(24, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) / 4
    targets = torch.arange(24) % 2
    for picture, target in zip(pixels, targets.tolist(), strict=True):
        picture[0, 8:24, 8:24] += 0.7 * target
        picture[0, 40:56, 40:56] += 0.7 * (1 - target)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(pixels)[0], targets).backward()
        optimizer.step()
    network.eval()
    frames = pixels.numpy()
    support = map_support(network, frames[:4])
    return Examined((network,), (support,), answering(network), "grad-cam", frames, 0)


def named(checks: tuple[ExplanationCheck, ...]) -> dict[str, ExplanationCheck]:
    return {check.name: check for check in checks}


def test_maps_of_a_network_pass_and_are_the_same_when_checked_again(examined: Examined) -> None:
    checks = check_explanations(examined, no_masks)
    assert set(named(checks)) == {"randomisation", "deletion", "insertion"}
    assert named(checks)["randomisation"].passed
    assert check_explanations(examined, no_masks) == checks


@dataclass(frozen=True, slots=True, eq=False)
class Blind(Examined):
    """Maps that show the brightness of the picture, whatever the network is."""

    def maps(self, networks: Sequence[Network], pixels: FloatArray) -> FloatArray:
        cells = pixels.reshape(len(pixels), 1, 4, SIZE // 4, 4, SIZE // 4).mean((3, 5))
        return np.repeat(cells, 2, axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Reversed(Examined):
    """Maps that are hot where the lawful ones are cold."""

    def maps(self, networks: Sequence[Network], pixels: FloatArray) -> FloatArray:
        found = super(Reversed, self).maps(networks, pixels)
        return found.max(axis=(2, 3), keepdims=True) - found


@dataclass(frozen=True, slots=True, eq=False)
class Empty(Examined):
    """Maps in which nothing speaks for any label."""

    def maps(self, networks: Sequence[Network], pixels: FloatArray) -> FloatArray:
        return np.zeros((len(pixels), 2, 4, 4), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Restored(Blind):
    """Maps that fall apart where some layers are random, and come back where all of them are."""

    def maps(self, networks: Sequence[Network], pixels: FloatArray) -> FloatArray:
        (network,) = networks
        trained = self.networks[0].body.state_dict()
        random = [name for name, value in network.body.named_parameters() if not torch.equal(value, trained[name])]
        found = super(Restored, self).maps(networks, pixels)
        return found if not random or "conv1.0.weight" in random else 1 - found


def of(kind: type[Examined], examined: Examined) -> Examined:
    return kind(examined.networks, examined.supports, examined.engine, examined.method, examined.pixels, examined.seed)


def test_a_map_that_ignores_the_network_fails_randomisation(examined: Examined) -> None:
    check = named(check_explanations(of(Blind, examined), no_masks))["randomisation"]
    assert (check.passed, check.value) == (False, 1.0)


def test_what_counts_in_randomisation_is_the_end_where_all_layers_are_random(examined: Examined) -> None:
    check = named(check_explanations(of(Restored, examined), no_masks))["randomisation"]
    assert (check.passed, check.value) == (False, 1.0)


def test_empty_maps_are_no_ground_for_trust(examined: Examined) -> None:
    checks = check_explanations(of(Empty, examined), no_masks)
    assert [(check.name, check.frames, check.passed) for check in checks] == [
        (name, 0, False) for name in ("randomisation", "deletion", "insertion")
    ]
    support = HeatmapSupport.model_validate(make_support(checks=checks))
    assert support.caveat
    assert support.caveat == (
        "The heatmaps of this bundle could not be checked (randomisation, deletion, insertion), as they are the same "
        "everywhere: do not rely on them."
    )


def test_a_map_turned_round_fails_where_the_lawful_one_does_better_than_chance(examined: Examined) -> None:
    lawful, turned = (named(check_explanations(one, no_masks)) for one in (examined, of(Reversed, examined)))
    assert lawful["deletion"].value < turned["deletion"].value
    assert lawful["insertion"].value > turned["insertion"].value
    assert not (turned["deletion"].passed and turned["insertion"].passed)


def test_lesions_that_the_map_finds_pass_and_others_fail(examined: Examined) -> None:
    heat = examined.maps(examined.networks, examined.pixels)

    def at(places: NDArray[np.intp]) -> Masks:
        masks = {}
        for number, place in enumerate(places):
            mask = np.zeros(heat.shape[2:], bool)
            mask.flat[place] = True
            masks[number] = (number % 2, mask)
        return masks

    flat = heat[np.arange(24), np.arange(24) % 2].reshape(24, -1)
    found = named(check_explanations(examined, lambda cells: at(flat.argmax(axis=1))))
    assert (found["pointing"].value, found["pointing"].passed, found["pointing"].frames) == (1.0, True, 24)
    assert found["iou"].passed
    assert found["pointing"].reference == pytest.approx(1 / flat.shape[1])
    missed = named(check_explanations(examined, lambda cells: at(flat.argmin(axis=1))))
    assert (missed["pointing"].value, missed["pointing"].passed) == (0.0, False)


def test_the_full_scale_is_what_the_strongest_cells_of_a_finding_reach(examined: Examined) -> None:
    strongest = examined.maps(examined.networks, examined.pixels).max(axis=(2, 3))
    rows, chosen = np.arange(24), np.zeros((24, 2), bool)
    chosen[1::2, 0] = chosen[::3, 1] = True
    reached = [np.percentile(strongest[chosen[:, label], label], 95) for label in (0, 1)]
    found = full_scale(examined, examined.pixels, rows, chosen)
    assert max(reached) <= found <= max(reached) * 1.11  # rounded up to two digits
    assert float(f"{found:.2g}") == found
    few = full_scale(examined, examined.pixels, rows[[4, 6]], np.array([[False, True], [True, False]]))
    assert few >= max(strongest[4, 1], strongest[6, 0]) * 0.95
    assert full_scale(examined, examined.pixels, rows, np.zeros((24, 2), bool)) == 1.0
    assert full_scale(of(Empty, examined), examined.pixels, rows, chosen) == 1.0


@pytest.mark.parametrize(
    ("reached", "expected"), [(0.4231, 0.43), (0.43, 0.43), (12.31, 13.0), (431.0, 440.0), (0.00712, 0.0072)]
)
def test_the_full_scale_has_two_digits(examined: Examined, reached: float, expected: float) -> None:
    class Level(Examined):
        def maps(self, networks: Sequence[Network], pixels: FloatArray) -> FloatArray:
            return np.full((len(pixels), 2, 4, 4), reached, np.float32)

    assert full_scale(of(Level, examined), examined.pixels, np.arange(2), np.ones((2, 2), bool)) == expected


def test_the_scale_of_a_bundle_is_that_of_its_true_positives_and_stated(trained: Trained) -> None:
    from pipeline.config import load_config
    from pipeline.ingest.index import load_index
    from pipeline.score.predictor import Predictor
    from pipeline.train.training_data import select_training_data

    bundle, config = load_bundle(trained.bundle), load_config(trained.config)
    data, predictor = select_training_data(config, load_index(trained.index)), Predictor(load_bundle(trained.bundle))
    strongest = []
    for row in data.rows(Split.CALIBRATION):
        record = data.records[row]
        if record.labels["PNEUMONIA"]:
            frames = read_frames(locate(data.sources[record.root], record.source))
            (result,) = predictor.predict([frame for frame in frames if frame.key == record.key])
            (said,) = (one for one in result.predictions if one.label == "PNEUMONIA")
            (heatmap,) = (one for one in result.heatmaps if one.label == "PNEUMONIA")
            if said.positive:
                strongest.append(float(heatmap.values.max()))
    support = bundle.manifest.heatmap
    assert support.true_positives == len(strongest)
    card = bundle.read("MODEL_CARD.md").decode()
    assert f"from 0 to {support.full_scale:g} in every picture of this bundle." in card
    assert ("There was no true positive" in card) == (not strongest)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_network_with_random_weights_fails(examined: Examined, seed: int) -> None:
    lawful = examined.maps(examined.networks, examined.pixels)

    def where_the_square_is(cells: tuple[int, int]) -> Masks:
        bright = examined.pixels[:, 0].reshape(24, cells[0], SIZE // cells[0], cells[1], SIZE // cells[1]).mean((2, 4))
        return {number: (number % 2, mask) for number, mask in enumerate(bright > np.median(bright) + 0.1)}

    assert lawful.shape[2:] == next(iter(where_the_square_is(lawful.shape[2:]).values()))[1].shape
    network = copy.deepcopy(examined.networks[0])
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.body.parameters():
        flat = parameter.detach().flatten()
        parameter.data.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(parameter))
    random = Examined((network,), examined.supports, answering(network), "grad-cam", examined.pixels, 0)
    found, lost = (named(check_explanations(one, where_the_square_is)) for one in (examined, random))
    assert found["iou"].passed
    assert not all(check.passed for check in lost.values())


def test_a_bundle_says_what_its_checks_found(trained: Trained) -> None:
    bundle = load_bundle(trained.bundle)
    checks = named(bundle.manifest.heatmap.checks)
    assert {"randomisation", "deletion", "insertion", "pointing", "iou"} >= set(checks)
    assert checks
    card = bundle.read("MODEL_CARD.md").decode()
    assert "## Heatmaps" in card
    for check in checks.values():
        assert f"| {check.name} | {check.frames} | {check.value:.3f} | {check.reference:.3f} |" in card
    failed = [name for name, check in checks.items() if not check.passed]
    assert bool(bundle.manifest.heatmap.caveat) == bool(failed)
    assert all(name in bundle.manifest.heatmap.caveat for name in failed)


def test_lesions_lie_where_the_truth_of_the_phantoms_says(trained: Trained) -> None:
    from pipeline.config import load_config
    from pipeline.ingest.index import load_index
    from pipeline.train.training_data import select_training_data

    config, truth = load_config(trained.config), json.loads((trained.studies.parent / "truth.json").read_text())
    data = select_training_data(config, load_index(trained.index))
    rows = data.rows(Split.TRAIN)
    masks = lesion_masks(data, rows, config.network_preprocessing(), (8, 8))
    assert masks
    for number, (label, mask) in masks.items():
        record = data.records[rows[number]]
        (frame,) = truth[f"studies/{record.source}"]["frames"]
        assert data.labels[label] == "PNEUMONIA"
        assert record.labels["PNEUMONIA"]
        longest = max(record.rows, record.columns)
        top = (longest - record.rows) / 2
        for box in frame["boxes"]:
            row = int((box["top"] + box["rows"] / 2 + top) * 8 / longest)
            column = int((box["left"] + box["columns"] / 2 + (longest - record.columns) / 2) * 8 / longest)
            assert mask[row, column]
        assert mask.sum() < 64
    assert lesion_masks(data, rows, config.network_preprocessing(), (8, 8)).keys() == masks.keys()


def test_studies_without_a_truth_have_no_known_lesions(trained: Trained, tmp_path: Path) -> None:
    from dataclasses import replace

    from pipeline.config import load_config
    from pipeline.ingest.index import load_index
    from pipeline.train.training_data import select_training_data

    config = load_config(trained.config)
    data = replace(select_training_data(config, load_index(trained.index)), sources=(tmp_path,))
    assert lesion_masks(data, data.rows(Split.TRAIN), config.network_preprocessing(), (8, 8)) == {}
    (tmp_path.parent / "truth.json").write_text("not JSON")
    assert lesion_masks(data, data.rows(Split.TRAIN), config.network_preprocessing(), (8, 8)) == {}

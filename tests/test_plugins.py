"""Plug-ins: how they are found, what they may break, and that a bundle can be scored without them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import plugins
from pipeline.cli.main import main
from pipeline.errors import BundleError, ConfigError
from pipeline.frames import Split
from pipeline.imaging.sources import locate, read_frames
from pipeline.ingest.index import load_index
from pipeline.model.bundle import CONFIG, load_bundle
from pipeline.plugins import find_plugin, load_plugins, plugin_names, register_plugin
from pipeline.score.predictor import Predictor
from tests.conftest import Trained

NETWORK = """
from octray import NetworkBody, register_plugin
from torch import Tensor, nn


class Dense(NetworkBody):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.convolution, self.dense = nn.Conv2d(1, 4, 8, 8), nn.Linear(4 * 64, 8)
        self.classifier = nn.Linear(8, labels)

    def forward_features(self, pixels: Tensor) -> Tensor:
        return self.convolution(pixels).relu()

    def pool(self, features: Tensor) -> Tensor:
        return self.dense(features.flatten(1)).relu()


@register_plugin("network", "dense_of_mine")
def dense(labels: int, size: int) -> Dense:
    return Dense(labels)
"""


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plugins, "_REGISTERED", {kind: {} for kind in plugins._REGISTERED})
    monkeypatch.setattr(plugins, "_INSTALLED", [])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("mine"):
            del sys.modules[name]


def test_a_network_of_a_plugin_is_trained_and_scored_without_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(NETWORK)
    words = ["train", str(trained.config), "--index", str(trained.index), "--out", str(tmp_path / "bundle")]
    settings = ["model.architecture=dense_of_mine", "tracking.enabled=false", "train.finetune.epochs=1"]
    assert main([*words, "--plugin", str(tmp_path / "mine.py"), *settings]) == 0, capsys.readouterr().err
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.manifest.architecture, bundle.manifest.heatmap.computed) == ("dense_of_mine", "gradient")
    assert "plugins:\n- mine.py\n" in bundle.read(CONFIG).decode()
    frame = next(read_frames(locate(trained.studies, load_index(trained.index).of(Split.CALIBRATION)[0].source)))
    (whole,) = Predictor(bundle).predict([frame])
    assert [heatmap.values.shape for heatmap in whole.heatmaps] == [(8, 8), (8, 8)]

    monkeypatch.setattr(plugins, "_REGISTERED", {kind: {} for kind in plugins._REGISTERED})
    predictor = Predictor(bundle)
    (bare,) = predictor.predict([frame], heatmaps=False)
    assert bare.predictions == whole.predictions
    with pytest.raises(BundleError, match="need the network dense_of_mine of a plug-in that is not installed here"):
        predictor.predict([frame])
    capsys.readouterr()
    results = ["score", str(trained.studies / load_index(trained.index).records[0].source), "--bundle", str(bundle.path)]
    assert main([*results, "--out", str(tmp_path / "bare"), "--no-heatmaps"]) in (0, 1)
    assert main([*results, "--out", str(tmp_path / "drawn")]) == 2
    assert "or score without heatmaps (--no-heatmaps)." in capsys.readouterr().err

    assert main([*words, *settings]) == 2
    assert "there is no network called dense_of_mine." in capsys.readouterr().err


def test_the_plugin_of_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_installed.py").write_text(NETWORK)
    (tmp_path / "mine-1.0.dist-info").mkdir()
    (tmp_path / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (tmp_path / "mine-1.0.dist-info" / "entry_points.txt").write_text("[octray]\nmine = mine_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins()
    load_plugins()
    assert plugin_names("network") == ["dense_of_mine"]
    assert find_plugin("network", "dense_of_mine") is not None
    assert find_plugin("network", "another") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nowhere_at_all", "mine_bad.py cannot be imported: No module named 'nowhere_at_all'. Correct it, or"),
        ("1 / 0", "mine_bad.py cannot be imported: division by zero."),
        (None, "there is no file "),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named(text: str | None, expected: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "mine_bad.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_plugins([str(tmp_path / "mine_bad.py"), "mine_nowhere"])
    first, second = caught.value.faults
    assert expected in first
    assert (
        second
        == "plugins: mine_nowhere cannot be imported: No module named 'mine_nowhere'. Correct it, or name another module."
    )
    assert "mine_bad" not in sys.modules


def test_two_plugins_may_not_have_one_name() -> None:
    def first(labels: int, size: int) -> None: ...
    def second(labels: int, size: int) -> None: ...

    register_plugin("network", "twice")(first)
    register_plugin("network", "twice")(first)
    with pytest.raises(ConfigError, match="both register the network twice. Rename one."):
        register_plugin("network", "twice")(second)


def test_a_file_may_not_hide_a_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match="has the name of another module, json. Rename the file."):
        load_plugins([str(tmp_path / "json.py")])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return None", "has no separate features and head"),
        ("raise ValueError('eight labels at most')", "the plug-in's network broken cannot be made: eight labels at most."),
    ],
)
def test_a_network_that_is_none_is_refused_in_a_sentence(body: str, expected: str, tmp_path: Path) -> None:
    from pipeline.model.networks import create_network

    text = f"from octray import register_plugin\n@register_plugin('network', 'broken')\ndef make(labels, size):\n    {body}\n"
    (tmp_path / "mine_broken.py").write_text(text)
    load_plugins([str(tmp_path / "mine_broken.py")])
    with pytest.raises(ConfigError, match=expected):
        create_network("broken", 2, 64)

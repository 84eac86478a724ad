"""The subcommands around data, bundles, configurations and servers."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from pipeline.catalog import list_datasets
from pipeline.cli import bundle, config, data, serve, ui
from pipeline.config import Config, load_config
from pipeline.errors import BundleError, ConfigError, InputError
from pipeline.model.bundle import GRAPH
from tests.builders import make_bundle


def run(module: ModuleType, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(arguments)))


@pytest.mark.parametrize("module", [bundle, config, data, serve, ui], ids=lambda module: module.__name__)
def test_each_example_is_valid(module: ModuleType) -> None:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    program, _, *arguments = module.EXAMPLE.split()
    assert program == "octray"
    parser.parse_args(arguments)


def test_the_list_has_a_line_for_each_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [card.name for card in list_datasets()]
    assert next(line for line in lines if line.startswith("octmnist")).split()[1] == "pull"


def test_pulling_an_unknown_set_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"no data set 'octmnits'. Did you mean octmnist\?"):
        run(data, "pull", "octmnits")


def test_a_whole_bundle_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_bundle(tmp_path / "bundle")
    assert run(bundle, "verify", str(made.path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"bundle_id: {made.manifest.bundle_id}"
    assert lines[-1] == f"files: {len(list(made.path.iterdir())) - 1}, all unaltered"


def test_an_altered_bundle_is_not_verified(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    with (made.path / GRAPH).open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"The file model.onnx of bundle bundle does not match its hash"):
        run(bundle, "verify", str(made.path))


def test_a_checked_configuration_is_shown_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("name: tiny\n")
    assert run(config, "check", str(path), "train.seed=7") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["train"]["seed"] == 7
    assert Config.model_validate(shown) == load_config(path, ["train.seed=7"])


def test_every_fault_of_a_configuration_is_told(tmp_path: Path) -> None:
    path = tmp_path / "faulty.yaml"
    path.write_text("name: faulty\nmodel: {architektur: resnet18}\ntrain: {seed: -1}\npreprocessing: {size: big}\n")
    with pytest.raises(ConfigError) as caught:
        run(config, "check", str(path))
    assert len(caught.value.faults) == 3
    assert "Did you mean model.architecture?" in str(caught.value)


@pytest.mark.parametrize(
    ("store", "sentence"),
    [
        ("sqlite:///absent/mlflow.db", "There is no MLflow store mlflow.db yet. Run `octray train` first"),
        ("absent/runs", "There is no MLflow store runs yet."),
        ("https://mlflow.example.org", "The store is a running MLflow server: open its address in a browser instead."),
    ],
)
def test_a_store_that_cannot_be_shown_is_one_sentence(
    store: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        run(ui, "--store", store)
    assert sentence in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(InputError) as caught:
        run(ui)
    assert sentence in str(caught.value)


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    store.touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"Cannot listen on 127.0.0.1 port {port}: Address already in use"):
            run(ui, "--store", f"sqlite:///{store}", "--port", str(port))


@pytest.mark.slow
def test_mlflow_opens_on_the_store(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"
    store.touch()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = (
        "import argparse, signal, sys; from pipeline.cli import ui\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "parser = argparse.ArgumentParser(); ui.add_arguments(parser)\n"
        "assert 'mlflow' not in sys.modules\n"
        "try: sys.exit(ui.run(parser.parse_args()))\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    command = [sys.executable, "-c", code, "--store", f"sqlite:///{store}", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert wait_until_healthy(port, process) == b"OK"
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    with socket.create_server(("127.0.0.1", port)):
        pass  # nothing that MLflow started holds the port any more


def wait_until_healthy(port: int, process: subprocess.Popen[bytes]) -> bytes:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
                return bytes(response.read())
        except OSError:
            assert process.poll() is None
            time.sleep(0.2)
    raise AssertionError("MLflow did not answer")

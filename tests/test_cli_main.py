"""The command `octray` itself: help, the words it takes, and how every kind of end becomes one sentence and an exit code."""

import argparse
import errno
import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.cli import models
from pipeline.cli.main import COMMANDS, _parse, build_parser, main
from pipeline.errors import BundleError, ConfigError, InputError

ISSUED = {
    "phantom",
    "inspect",
    "ingest",
    "train",
    "sweep",
    "deidentify",
    "evaluate",
    "calibrate",
    "compare",
    "score",
    "serve",
    "models",
    "bundle",
    "promote",
    "sync",
    "data",
    "config",
    "ui",
}


def octray(*words: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "pipeline.cli.main", *words], text=True, **options)  # type: ignore[call-overload, no-any-return]


def exit_code(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as leaving:
        return int(leaving.code or 0)


# Help


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from pipeline.cli.main import main
try:
    main(["--help"])
except SystemExit as leaving:
    assert leaving.code == 0
heavy = {"torch", "timm", "numpy", "rich", "mlflow", "pydantic", "yaml", "onnxruntime", "fastapi", "uvicorn", "PIL", "pydicom"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "not a medical device" in done.stdout
    assert "exit codes: 0 done, 1 some studies failed and are listed, 2 unusable" in done.stdout


def test_the_commands_are_those_that_others_script_against() -> None:
    assert set(COMMANDS) == ISSUED


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_it_takes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([command, "--help"]) == 0
    said = capsys.readouterr().out
    example = said.partition("example:\n  ")[2].splitlines()[0]
    program, *words = shlex.split(example)
    assert (program, words[0]) == ("octray", command)
    assert _parse(build_parser(), words).run is importlib.import_module(f"pipeline.cli.{command}").run


# Words that it does not take


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "octray: the following arguments are required: COMMAND. `octray --help` explains how to use it."),
        (["scroe"], "octray: argument COMMAND: invalid choice: 'scroe'"),
        (["score", "a"], "octray: the following arguments are required: --bundle, --out. `octray score --help` explains"),
        (["train", "smoke"], "octray: the following arguments are required: --index, --out. `octray train --help` explains"),
        (["train", "smoke", "--index", "i", "--out", "o", "--epochs", "3"], "octray: unrecognized arguments: --epochs 3."),
        (["score", "a", "b", "--bundle", "c", "--out", "d"], "octray: unrecognized arguments: b."),
        (["phantom", "a", "--studies", "many"], "octray: argument --studies: invalid int value: 'many'."),
        (["models"], "octray: the following arguments are required: ACTION. `octray models --help` explains how to use it."),
        (["evaluate", "b", "--index", "i", "--split", "validation"], "octray: argument --split: invalid choice: 'validation'"),
    ],
)
def test_a_wrong_word_is_one_line_and_2(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(sentence)
    assert said.err.count("\n") == 1


def test_overrides_may_stand_before_and_after_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text("name: tiny\n")
    words = [
        "train",
        str(config),
        "train.sed=1",
        "--index",
        "i",
        "model.nets=2",
        "--out",
        "o",
        "--resume",
        "oops",
        "tracking.a=1",
    ]
    assert main(words) == 2
    said = capsys.readouterr().err
    form = "'oops' must have the form section.key=value"
    faults = ("train.sed is not a setting", "model.nets is not", form, "tracking.a is not")
    for fault in faults:
        assert fault in said
    assert len(said.splitlines()) == 4


# How a command ends


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """A run of `octray models list` that ends in an exception."""

    def end(error: BaseException) -> int:
        def run(args: argparse.Namespace) -> int:
            raise error

        monkeypatch.setattr(models, "run", run)
        return main(["models", "list"])

    return end


def missing() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/private/frames.tmp")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("One sentence."), 2, "octray: One sentence.\n"),
        (BundleError("Another."), 2, "octray: Another.\n"),
        (ConfigError(["First fault.", "Second fault."]), 2, "octray: First fault.\noctray: Second fault.\n"),
        (KeyboardInterrupt(), 130, "octray: Interrupted. What was finished is kept.\n"),
        (
            missing(),
            2,
            "octray: frames.tmp: No space left on device. Check the place, its permissions and its free space.\n",
        ),
        (OSError(), 2, "octray: OSError. Check the place, its permissions and its free space.\n"),
        (
            KeyError("/somewhere/Doe^Jane"),
            2,
            "octray: An unexpected KeyError. Please report it as a fault of octray; "
            "`python -X dev -m pipeline.cli.main` with the same arguments shows where it happened.\n",
        ),
    ],
)
def test_every_end_has_its_code_and_its_sentence(
    error: BaseException, code: int, said: str, ending: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(error) == code
    assert capsys.readouterr() == ("", said)


def test_an_interrupt_has_its_code_even_within_an_exec_of_text() -> None:
    code = (
        "import signal, sys; from pipeline.cli import main, models\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "models.run = lambda args: exec('signal.raise_signal(signal.SIGINT)', {'signal': signal})\n"
        "sys.exit(main.main(['models', 'list']))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (130, "octray: Interrupted. What was finished is kept.\n")


def test_a_developer_sees_where_a_fault_happened(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.cli import main, models\n"
        "models.run = lambda args: {}['fault']\n"
        "sys.exit(main.main(['models', 'list']))"
    )
    shown = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, check=False)
    assert "KeyError: 'fault'" in shown.stderr
    hidden = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (hidden.returncode, "Traceback" in hidden.stderr) == (2, False)


@pytest.mark.parametrize("words", [["config", "check", "smoke"], ["models", "list"]], ids=["buffered", "large"])
def test_a_reader_that_went_away_is_no_fault(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = octray(*words, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


# `octray models`


def test_networks_are_listed_by_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    _, _, names = capsys.readouterr().out.rpartition("\n\n")
    families = dict(line.split(": ", 1) for line in names.splitlines())
    assert "resnet18" in families["ResNet"].split()
    assert "tf_efficientnet_lite0" in families["EfficientNet"].split()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "resnet18",
            [
                "family: ResNet",
                "parameters: 11,689,512",
                "features: 512 on 7 x 7 cells",
                "heatmaps: exact, from the forward pass",
            ],
        ),
        ("mobilenetv3_small_050", ["family: MobileNet", "heatmaps: by gradient, with torch"]),
    ],
)
def test_a_network_is_described(name: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "describe", name]) == 0
    assert {f"name: {name}", *lines} <= set(capsys.readouterr().out.splitlines())


def test_a_misspelt_network_is_answered_with_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "describe", "resnet81"]) == 2
    assert "resnet18" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"octray {metadata.version('octray')}\n"

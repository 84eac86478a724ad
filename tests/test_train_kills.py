"""Runs that are killed, alone or one of several processes, and runs that meet a full disk."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.model.bundle import METRICS, WEIGHTS, Bundle, load_bundle
from tests.conftest import Trained

POINTS = 20
LOST = (
    "octray: Another process of this run has ended. Start the same command again with --resume to go on after the last "
    "finished epoch."
)
INTERRUPTED = [  # if torchrun ends the other process before that notices
    "octray: Run the same command with --resume to continue after the last finished epoch.",
    "octray: Interrupted. What was finished is kept.",
]


def contents(bundle: Bundle) -> dict[str, object]:
    """Everything of a bundle that the clock has no part in."""
    left_out = {"bundle_id", "provenance", "files"}
    fields = {name: value for name, value in bundle.manifest.model_dump(mode="json").items() if name not in left_out}
    files = {name: bundle.read(name) for name in bundle.manifest.files if name != "MODEL_CARD.md"}
    return {"manifest": fields, **files}


def words_of(trained: Trained, out: Path, *more: str) -> list[str]:
    words = ["train", str(trained.config), "--index", str(trained.index), "--out", str(out)]
    return [*words, "tracking.enabled=false", *more]


@pytest.mark.slow
def test_killed_at_any_of_20_points_a_run_ends_with_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    """A run that was killed is resumed and may be killed again, up to four times, before it is let to its end."""
    settings = ["model.architecture=lenet5", "preprocessing.size=32", "train.finetune.epochs=3", "--resume"]
    command = [sys.executable, "-m", "tests.kill_points", str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as copies:
        assert copies.stdin
        assert copies.stdout

        def start(number: int, out: Path) -> tuple[int, int]:
            copies.stdin.write(json.dumps([number, words_of(trained, out, *settings)]) + "\n")
            copies.stdin.flush()
            code, seen = json.loads(copies.stdout.readline())
            return code, seen

        code, operations = start(0, tmp_path / "whole" / "bundle")
        assert code == 0
        expected = contents(load_bundle(tmp_path / "whole" / "bundle"))
        draw = random.Random(operations)  # noqa: S311 - no secret
        firsts, kills, runs = [operations, operations - 1], 0, 0
        while kills < POINTS:
            runs += 1
            out, point, points = tmp_path / str(runs) / "bundle", firsts.pop() if firsts else draw.randint(1, operations), []
            while len(points) < 4 and (code := start(point, out)[0]) == -signal.SIGKILL:
                points.append(point)
                point = draw.randint(1, max(1, operations - point))  # among those that are left
            assert points
            assert len(points) == 4 or code == 0, points
            assert code == 0 or start(0, out)[0] == 0, points
            assert contents(load_bundle(out)) == expected, f"killed at operations {points} of {operations}"
            assert [path.name for path in out.parent.iterdir()] == ["bundle"]
            kills += len(points)
        copies.stdin.close()


# Several processes


def torchrun(words: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command += ["--local-addr", "127.0.0.1", "-m", "pipeline.cli.main", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def process_of(launcher: int, rank: int) -> int:
    """Return the process of a rank, by its environment."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (place / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == launcher and f"RANK={rank}".encode() in variables:
            return int(place.name)
    raise AssertionError("the process has not started, or has ended")


@pytest.fixture(scope="module")
def of_two(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    """A bundle that two processes trained, and its settings: pretrained weights, so that batches may be divided at will."""
    settings = [f"model.weights={trained.bundle / WEIGHTS}", "train.augment.cutmix=0.5"]
    out = tmp_path_factory.mktemp("two") / "bundle"
    with torchrun(words_of(trained, out, *settings)) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    return load_bundle(out), settings


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds the processes in /proc")
@pytest.mark.parametrize("rank", [1, 0])
def test_one_of_two_processes_is_killed_and_the_run_resumes(
    rank: int, of_two: tuple[Bundle, list[str]], trained: Trained, tmp_path: Path
) -> None:
    expected, settings = of_two
    out, checkpoint = tmp_path / "bundle", tmp_path / "bundle.work" / "checkpoint.safetensors"
    words = words_of(trained, out, *settings, "--resume")
    with torchrun(words) as process:
        while not checkpoint.is_file():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
        os.kill(process_of(process.pid, rank), signal.SIGKILL)
        said = process.communicate()[1]
    assert process.returncode != 0
    sentences = [line for line in said.splitlines() if line.startswith("octray: ") and "patients" not in line]
    assert sentences in ([LOST], INTERRUPTED) if rank else not sentences
    assert "pipeline/train" not in said, "torchrun may print a traceback of its own, but octray none"
    with torchrun(words) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert contents(load_bundle(out)) == contents(expected)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(of_two: tuple[Bundle, list[str]], trained: Trained, tmp_path: Path) -> None:
    from pipeline.cli.main import main

    settings = [f"model.weights={trained.bundle / WEIGHTS}", "train.augment.cutmix=0"]
    losses = []
    with torchrun(words_of(trained, tmp_path / "two" / "bundle", *settings)) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert main(words_of(trained, tmp_path / "one" / "bundle", *settings)) == 0
    for name in ("one", "two"):
        bundle = load_bundle(tmp_path / name / "bundle")
        (network,) = json.loads(bundle.read(METRICS))["networks"]
        losses.append([epoch["tune_loss"] for epoch in network["epochs"]])
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-3)


# A full disk


@pytest.mark.slow
def test_no_room_for_frames_ends_with_a_sentence(trained: Trained, tmp_path: Path) -> None:
    words = words_of(trained, tmp_path / "bundle")
    command = ["bash", "-c", 'ulimit -f 200 && exec "$@"', "-", sys.executable, "-m", "pipeline.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    said = "octray: There is no room for frames.npy in bundle.work: 0.000 GB are needed and "
    assert [line for line in done.stderr.splitlines() if line.startswith(said)]
    assert not (tmp_path / "bundle").exists()

"""How many studies a second go through the ledger, in PostgreSQL by eight processes and in SQLite by one."""

import hashlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.types import Order, Outcome, Output, StudyWork
from tests.server_postgres import running_postgres

STUDIES, BATCH, ROUNDS = 40_000, 250, 3
LEASE_SECONDS = 600.0


def main() -> int:
    """Print studies a second of each way, the median of rounds."""
    print(f"{STUDIES:,} studies of {len(record(0)):,} bytes, claimed {BATCH} at a time; studies a second, in rounds:")
    with tempfile.TemporaryDirectory() as folder:
        show("SQLite, one process", f"sqlite:///{Path(folder) / 'ledger.sqlite'}", 1)
    with running_postgres() as url:
        show("PostgreSQL, one process", url, 1)
        show("PostgreSQL, eight processes", url, 8)
    return 0


def show(name: str, url: str, processes: int) -> None:
    """Print one line for a database: entering, claiming and finishing, reading back."""
    rounds = [measure(url, processes) for _ in range(ROUNDS)]
    for what, figures in zip(("entered", "claimed and finished", "read back"), zip(*rounds, strict=True), strict=True):
        print(f"  {name}, {what}: {', '.join(f'{figure:,.0f}' for figure in figures)}", flush=True)


def measure(url: str, processes: int) -> tuple[float, float, float]:
    """Return studies a second that are entered, worked through, and read back by urgency."""
    run = uuid.uuid4().hex
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1)
    workers = [context.Process(target=work, args=(url, run, f"owner-{number}", barrier)) for number in range(processes)]
    with Ledger(url, run) as ledger:
        start = time.perf_counter()
        ledger.add(works())
        entered = time.perf_counter() - start
        for worker in workers:
            worker.start()
        barrier.wait()
        start = time.perf_counter()
        barrier.wait()
        worked = time.perf_counter() - start
        for worker in workers:
            worker.join()
        start = time.perf_counter()
        read = sum(1 for _ in ledger.outcomes(Order.URGENCY))
        seconds = time.perf_counter() - start
        ledger.remove()
    if read != STUDIES:
        raise SystemExit(f"{read} of {STUDIES} studies came back.")
    return STUDIES / entered, STUDIES / worked, STUDIES / seconds


def work(url: str, run: str, owner: str, barrier: Barrier) -> None:
    """Claim and finish until nothing is left; what is finished is made beforehand, so that only the ledger is measured."""
    records = [record(number) for number in range(BATCH)]
    draw = random.Random(owner)  # noqa: S311 - not a secret
    with Ledger(url, run) as ledger:
        ledger.unfinished()
        barrier.wait()
        while claims := ledger.claim(owner, BATCH, LEASE_SECONDS):
            ledger.finish(
                owner,
                [Outcome(one.id, held, 1, draw.random(), OUTPUTS) for one, held in zip(claims, records, strict=False)],
            )
        barrier.wait()


def works() -> Iterator[StudyWork]:
    """Yield studies of one file each, as a job enters them."""
    for number in range(STUDIES):
        key = hashlib.sha256(str(number).encode()).hexdigest()
        files = [{"source": f"{key[:2]}/{key[2:20]}.dcm", "path": f"{key[:2]}/{key[2:20]}.dcm"}]
        yield StudyWork(f"study:2.25.{int(key[:30], 16)}", number, key[:32], json.dumps(files).encode())


def record(number: int) -> bytes:
    """Return what is kept of a study with two frames and two labels: JSON of about 1.5 kB, in which numbers and UIDs vary."""
    draw = random.Random(number)  # noqa: S311 - not a secret

    def uid() -> str:
        return f"2.25.{draw.getrandbits(100)}"

    def frame() -> dict[str, object]:
        return {
            "series_instance_uid": uid(),
            "sop_instance_uid": uid(),
            "study_instance_uid": uid(),
            "frame_number": 1,
            "source": f"{draw.getrandbits(60):x}.dcm",
            "laterality": "L",
            "distance": round(draw.random(), 4),
            "input_sha256": f"{draw.getrandbits(256):064x}",
            "bundle_id": f"{draw.getrandbits(64):016x}",
            "flags": [],
            "predictions": [
                {
                    "label": label,
                    "logit": round(draw.gauss(0, 2), 4),
                    "probability": round(draw.random(), 4),
                    "positive": draw.random() > 0.5,
                    "conformal_set": [True],
                }
                for label in ("PNEUMONIA", "EFFUSION")
            ],
            "pictures": [{"label": "PNEUMONIA", "path": f"heatmaps/{uid()}_f0001.jpg", "has_positive_evidence": True}],
        }

    values = {"study_instance_uid": uid(), "frames": [frame(), frame()], "failures": []}
    return json.dumps(values, separators=(",", ":")).encode()


OUTPUTS = tuple(Output(f"heatmaps/2.25.{number}_f0001_PNEUMONIA.jpg", f"{number:064x}", 20_000) for number in (1, 2))

if __name__ == "__main__":
    sys.exit(main())

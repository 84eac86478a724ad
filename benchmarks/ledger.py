"""How many studies a second go through the ledger, and how many times as many that is as one core scores.

`python -m benchmarks.ledger [BUNDLE]` works in SQLite by one process and in PostgreSQL by one and by eight, then scores small
radiographs by `octray score` on one core, with heatmaps, with the bundle in that folder or with one that it trains.

What else the machine does at the time lowers what is counted by the clock, so that the processor time of a study stands beside
it, of the workers and of the server: that is what a machine of known size can be reckoned from.
"""

import hashlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pg8000.native
from sqlalchemy import make_url

from benchmarks.processes import ROUNDS, score_rate, show, train_on, write_small
from pipeline.store.ledger import Ledger, Order, Outcome, Output, Unit
from tests.server_postgres import find_programs, running_postgres

STUDIES, BATCH = 20_000, 250
LEASE_SECONDS = 600.0
SCORED = 400


def main(arguments: list[str]) -> int:
    """Print the rounds of each way, one line a round, and the ratio."""
    print(f"{STUDIES:,} studies with records of {len(record(0)):,} bytes, claimed and finished {BATCH} at a time:")
    with tempfile.TemporaryDirectory() as folder:
        count_rounds("SQLite, one process", f"sqlite:///{Path(folder) / 'ledger.sqlite'}", 1)
    if find_programs() is None:
        print("  PostgreSQL is not here: install Debian's package postgresql")
        return 0
    with running_postgres() as url:
        count_rounds("PostgreSQL, one process", url, 1)
        counted = count_rounds("PostgreSQL, eight processes", url, 8)
    scored = score_on_one_core(Path(arguments[0]) if arguments else None)
    title = "PostgreSQL, eight processes, against octray score on one core, small JPEG with heatmap files"
    show(title, list(zip(counted, scored, strict=True)))
    return 0


def score_on_one_core(bundle: Path | None) -> list[float]:
    """Return how many small radiographs a second `octray score` takes on one core; a bundle is trained where none is given."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small = write_small(root / "small", SCORED)
        measured = score_rate(small, bundle or train_on((small,), root), root)
        with one_core():
            return [measured() for _ in range(ROUNDS)]


@contextmanager
def one_core() -> Iterator[None]:
    """Hold what is started here to one of the cores of this process."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def count_rounds(name: str, url: str, processes: int) -> list[float]:
    """Print what a database does, and return the studies a second that were claimed and finished."""
    rounds = []
    for _ in range(ROUNDS):
        entered, worked, read, client, server = measure(url, processes)
        rounds.append(worked)
        print(
            f"  {name}: {worked:,.0f} studies a second claimed and finished ({client:.0f} us of workers and {server:.0f} us of "
            f"server a study); {entered:,.0f} entered, {read:,.0f} read back by urgency",
            flush=True,
        )
    return rounds


def measure(url: str, processes: int) -> tuple[float, float, float, float, float]:
    """Return studies a second that are entered, worked through, read back; and microseconds a study of workers and server."""
    run = uuid.uuid4().hex
    context = multiprocessing.get_context("spawn")
    barrier, spent = context.Barrier(processes + 1), context.Value("d", 0.0)
    given = [(url, run, f"owner-{number}", barrier, spent) for number in range(processes)]
    workers = [context.Process(target=work, args=one) for one in given]
    with Ledger(url, run) as ledger:
        start = time.perf_counter()
        ledger.add(works())
        entered = time.perf_counter() - start
        for worker in workers:
            worker.start()
        barrier.wait()
        start, before = time.perf_counter(), server_seconds(url)
        barrier.wait()
        worked = time.perf_counter() - start
        for worker in workers:
            worker.join()
        after = server_seconds(url)
        start = time.perf_counter()
        read = sum(1 for _ in ledger.outcomes(Order.URGENCY))
        seconds = time.perf_counter() - start
    if read != STUDIES:
        raise SystemExit(f"{read} of {STUDIES} studies came back.")
    micro = 1e6 / STUDIES
    return STUDIES / entered, STUDIES / worked, STUDIES / seconds, micro * spent.value, micro * (after - before)


def work(url: str, run: str, owner: str, barrier: Barrier, spent: "Synchronized[float]") -> None:
    """Claim and finish until nothing is left; records are made beforehand, so that only the ledger is measured."""
    records = [record(number) for number in range(BATCH)]
    draw = random.Random(owner)  # noqa: S311 - not a secret
    with Ledger(url, run) as ledger:
        ledger.unfinished()
        barrier.wait()
        start = time.process_time()
        while claims := ledger.claim(owner, BATCH, LEASE_SECONDS):
            pairs = zip(claims, records, strict=False)
            ledger.finish(owner, [Outcome(claim.id, kept, 1, draw.random(), OUTPUTS) for claim, kept in pairs])
        with spent.get_lock():
            spent.value += time.process_time() - start
        barrier.wait()


def server_seconds(url: str) -> float:
    """Return the processor time of a PostgreSQL server on this machine so far, that of ended connections included."""
    if url.startswith("sqlite"):
        return 0.0
    address = make_url(url)
    connection = pg8000.native.Connection(
        address.username, host=address.host, port=address.port or 5432, database=address.database
    )
    ((server,),) = connection.run("SELECT split_part(pg_read_file('postmaster.pid'), chr(10), 1)")
    connection.close()
    fields = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            fields[path.parent.name] = path.read_text(encoding="utf-8").rpartition(")")[2].split()
    own = sum(sum(map(int, values[11:13])) for pid, values in fields.items() if server in (pid, values[1]))
    return (own + sum(map(int, fields[server][13:15]))) / os.sysconf("SC_CLK_TCK")


def works() -> Iterator[Unit]:
    """Yield studies of one file each, as a job enters them."""
    for number in range(STUDIES):
        key = hashlib.sha256(str(number).encode()).hexdigest()
        files = [{"source": f"{key[:2]}/{key[2:20]}.dcm", "path": f"{key[:2]}/{key[2:20]}.dcm"}]
        yield Unit(f"study:2.25.{int(key[:30], 16)}", number, key[:32], json.dumps(files).encode())


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
                    "state": draw.choice(["positive", "negative"]),
                }
                for label in ("PNEUMONIA", "EFFUSION")
            ],
            "pictures": [{"label": "PNEUMONIA", "path": f"heatmaps/{uid()}_f0001.jpg", "has_positive_evidence": True}],
        }

    values = {"study_instance_uid": uid(), "frames": [frame(), frame()], "failures": []}
    return json.dumps(values, separators=(",", ":")).encode()


OUTPUTS = tuple(Output(f"heatmaps/2.25.{number}_f0001_PNEUMONIA.jpg", f"{number:064x}", 20_000) for number in (1, 2))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

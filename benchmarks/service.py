"""`python -m benchmarks.service [COUNT]`: studies a second that the service answers, against `octray score` in one run.

Writes as many radiographs of 224 pixels as JPEG (400 unless told otherwise, at least 200), trains a bundle on some, and sends
each as a study of its own, with heatmaps, by 1, 4 and 16 clients at a time. Rates of `octray score` are those of a run in
progress.
"""

import http.client
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import MOST_REFUSED, ROUNDS, octray, score_rate, show, train_on, write_small

CLIENTS = (1, 4, 16)


def main(arguments: list[str]) -> int:
    """Print one ratio a line."""
    count = max(200, int(arguments[0])) if arguments else 400
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        small = write_small(root / "small", count)
        bundle = train_on((small,), root)
        files = [path.read_bytes() for path in sorted(small.iterdir())]
        score = score_rate(small, bundle, root)
        print(f"{count} radiographs of 224 px as JPEG, with heatmaps; median of {ROUNDS} rounds, range in brackets:")
        with serving(bundle) as port:
            rounds: dict[int, list[tuple[float, float]]] = {clients: [] for clients in CLIENTS}
            for _ in range(ROUNDS):
                theirs = score()
                for clients in CLIENTS:
                    rounds[clients].append((requests_a_second(port, files, clients), theirs))
        for clients, pairs in rounds.items():
            show(f"requests to the service, {clients} at a time, against octray score", pairs)
    return 0


@contextmanager
def serving(bundle: Path) -> Iterator[int]:
    """Serve a bundle in another process; yields the port once it is ready."""
    process = subprocess.Popen(octray("serve", "--bundle", str(bundle), "--port", "0"), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None  # noqa: S101 - for mypy
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r"127\.0\.0\.1:(\d+);", line)))
        threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
        while _get(port, "/readyz") != 200:
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def requests_a_second(port: int, files: Sequence[bytes], clients: int) -> float:
    """Send each file as a study, so many at a time, each client on a connection of its own."""
    local = threading.local()

    def send(content: bytes) -> int:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        local.connection.request("POST", "/v1/predict", head + content + b"\r\n--b--\r\n", headers)
        response = local.connection.getresponse()
        response.read()
        return int(response.status)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, files[: 2 * clients]))
        start = time.perf_counter()
        statuses = list(pool.map(send, files))
        seconds = time.perf_counter() - start
    if statuses.count(200) < (1 - MOST_REFUSED) * len(files):
        raise SystemExit(f"Only {statuses.count(200)} of {len(files)} studies were answered: this measures something else.")
    return len(files) / seconds


def _get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    return connection.getresponse().status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

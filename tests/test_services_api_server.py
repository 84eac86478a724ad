"""The service as a process of its own, over real sockets."""

import argparse
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BundleError, OctrayError
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.model.bundle import GRAPH, Bundle
from pipeline.score.predictor import Predictor
from services.api import command
from services.api.problems import MEDIA_TYPE
from tests.builders import make_bundle, make_dicom
from tests.server_chromium import Chromium

HEAD = (
    b"POST /v1/predict HTTP/1.1\r\nHost: octray\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
SLOW = """
import pipeline.score.study as study
from tests.worker_tasks import score_slowly
study.score_files = study.score_singly = score_slowly
"""
# `python -m services.api`, which takes SIGINT even where a shell started these tests in the background, with SIGINT ignored.
START = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('services.api', run_name='__main__', alter_sys=True)"
)


class Server:
    """A running service: its port, and everything it has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        self._listening = threading.Event()
        self._port = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def port(self) -> int:
        assert self._listening.wait(60), "".join(self.said)
        assert self._port, "".join(self.said)
        return self._port

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(60)
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"at http://127\.0\.0\.1:(\d+);", line):
                self._port = int(found[1])
                self._listening.set()
        self._listening.set()
        self.process.stderr.close()


@contextmanager
def serving(bundle: Path, *options: str, before: str = "") -> Iterator[Server]:
    """A running service; `before` is done in its process first, such as to shorten a limit."""
    arguments = ["-c", before + START, "--bundle", str(bundle), "--port", "0", "--concurrency", "1", *options]
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True)
    server = Server(process)
    try:
        for _ in range(600):
            if get(server.port, "/readyz")[0] == 200:
                break
            time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            server.stop()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Server]:
    with serving(bundle.path, "--max-body-mib", "1") as running:
        yield running


def get(port: int, path: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    return answer(connection)


def answer(connection: http.client.HTTPConnection) -> tuple[int, dict]:
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


def form(*parts: tuple[str, bytes]) -> bytes:
    """A multipart body of parts, each given by its Content-Disposition and its content."""
    heads = [(f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode(), content) for head, content in parts]
    return b"".join(head + content + b"\r\n" for head, content in heads) + b"--b--\r\n"


def part(content: bytes) -> bytes:
    return form(('name="files"; filename="a.dcm"', content))


def post(port: int, body: bytes, path: str = "/v1/predict") -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body, {"Content-Type": "multipart/form-data; boundary=b"})
    return answer(connection)


def test_a_study_sent_over_a_socket_gives_the_predictors_result(server: Server, bundle: Bundle) -> None:
    content = make_dicom()
    status, got = post(server.port, part(content))
    assert status == 200
    (expected,) = Predictor(bundle).predict(list(read_frames_from_bytes(content, "a.dcm")), heatmaps=False)
    assert {label: one["logit"] for label, one in got["frames"][0]["labels"].items()} == {
        prediction.label: prediction.logit for prediction in expected.predictions
    }


def test_a_chunked_body_is_cut_off_where_it_is_too_large(server: Server) -> None:
    """The service answers after one of the endless chunks; the client never ends its body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(HEAD)
        head = part(b"").removesuffix(b"\r\n--b--\r\n")
        connection.sendall(b"%x\r\n%s\r\n" % (len(head), head))
        for _ in range(17):
            connection.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            assert response.status == 413
            problem = json.loads(response.read())
    assert problem["detail"] == "The request is larger than 1,048,576 bytes. Send fewer files at a time."


# What is dropped nowhere


@pytest.mark.parametrize(
    ("head", "field"),
    [
        ('name="file"; filename="a.png"', "file"),
        ('name="files[]"; filename="a.png"', "files[]"),
        ('name="Files"; filename="a.png"', "Files"),
        ('name="files"', "files"),
        ('name="files"; filename=""', "files"),
        ("name=\"files\"; filename*=utf-8''a.png", "files"),
        ('name="comment"', "comment"),
    ],
)
def test_a_part_that_is_no_file_of_the_study_is_named(server: Server, head: str, field: str) -> None:
    """RFC 7578 4.2 forbids `filename*`, so that such a part has no file name."""
    status, problem = post(server.port, form(('name="files"; filename="a.dcm"', make_dicom()), (head, make_dicom())))
    assert (status, problem["type"]) == (422, "urn:octray:problem:invalid-request")
    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize(
    ("query", "field"), [("heatmap=false", "heatmap"), ("Heatmaps=false", "Heatmaps"), ("heatmaps=0&heatmaps=1", "heatmaps")]
)
def test_an_option_that_is_unknown_or_there_twice_is_named(server: Server, query: str, field: str) -> None:
    status, problem = post(server.port, part(make_dicom()), f"/v1/predict?{query}")
    assert (status, [error["field"] for error in problem["errors"]]) == (422, [field])
    assert get(server.port, "/v1/model?verbose=1")[0] == 422


def test_failures_of_files_with_one_name_can_be_told_apart(server: Server) -> None:
    damaged = make_dicom(StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4", SOPInstanceUID="1.2.5")[:3000]
    name = 'name="files"; filename="a.png"'
    status, got = post(server.port, form((name, b"text"), (name, make_dicom()), (name, damaged)), "/v1/predict?heatmaps=false")
    uids = ("study_instance_uid", "series_instance_uid", "sop_instance_uid")
    assert (status, [frame["index"] for frame in got["frames"]]) == (200, [1])
    assert [(one["index"], one["reason"], *(one[uid] for uid in uids)) for one in got["failures"]] == [
        (0, "not_an_image", "", "", ""),
        (2, "truncated", "1.2.3", "1.2.4", "1.2.5"),
    ]


# What never reaches the application


@pytest.mark.parametrize(
    ("request_", "status", "type_"),
    [
        (b"GET /a b c HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed-request"),
        (b"nonsense\r\n\r\n", 400, "malformed-request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000, 431, "headers-too-large"),
        (b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "unsupported-coding"),
    ],
)
def test_what_is_not_http_is_a_problem_too(server: Server, request_: bytes, status: int, type_: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request_)
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            problem = json.loads(response.read())
    assert (response.status, response.headers["content-type"]) == (status, MEDIA_TYPE)
    assert (problem["type"], problem["status"]) == (f"urn:octray:problem:{type_}", status)
    assert get(server.port, "/livez")[0] == 200
    assert "Traceback" not in "".join(server.said)


def test_the_page_of_the_interface_opens_without_loading_anything(server: Server, chromium: Chromium, tmp_path: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/docs")
    response = connection.getresponse()
    page = tmp_path / "docs.html"
    page.write_bytes(response.read())
    connection.close()
    assert "default-src 'none'" in (response.headers["content-security-policy"] or "")
    assert not re.search(rb"<script|<link|src=|url\(|@import", page.read_bytes())
    with chromium.reader(page) as reader:
        assert reader.evaluate("[...document.querySelectorAll('h2 code')].map(one => one.textContent)") == [
            *("GET /livez", "GET /readyz", "GET /v1/model", "POST /v1/predict")
        ]
        assert reader.evaluate("performance.getEntriesByType('resource').length") == 0


@pytest.mark.slow
def test_schemathesis_finds_no_fault_and_no_undocumented_answer(server: Server, tmp_path: Path) -> None:
    """All its checks; a form that is valid is still no study, since what it sends are no images."""
    (tmp_path / "schemathesis.toml").write_text('[checks]\npositive_data_acceptance.expected-statuses = ["2xx", 422]\n')
    program = Path(sys.executable).parent / "schemathesis"
    address = f"http://127.0.0.1:{server.port}/openapi.json"
    options = ("--checks", "all", "--max-examples", "30", "--seed", "1")
    command = [str(program), "--config-file", str(tmp_path / "schemathesis.toml"), "run", address, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "4 selected / 4 total" in done.stdout
    assert "Traceback" not in "".join(server.said)


# Clients that are slow, idle, gone or many


def test_slow_bodies_leave_room_for_others_and_are_given_up(bundle: Bundle) -> None:
    """As many bodies as once filled the service send a byte now and then; a study of another client is scored meanwhile."""
    with serving(bundle.path, before=shorter(idle_seconds=1.0, upload_rate=1000)) as running:
        slow = [socket.create_connection(("127.0.0.1", running.port), timeout=30) for _ in range(9)]
        for connection in slow:
            connection.sendall(HEAD + b"1\r\n-\r\n")
        assert post(running.port, part(make_dicom()))[0] == 200
        for connection in slow:
            with http.client.HTTPResponse(connection) as response:
                response.begin()
                assert (response.status, json.loads(response.read())["type"]) == (408, "urn:octray:problem:too-slow")
            connection.close()


def test_connections_without_a_request_are_closed(bundle: Bundle) -> None:
    with serving(bundle.path, before=shorter(idle_seconds=0.5)) as running:
        silent, begun = (socket.create_connection(("127.0.0.1", running.port), timeout=30) for _ in range(2))
        begun.sendall(b"GET /livez HTTP/1.1\r\n")
        assert silent.recv(1) == b""
        assert begun.recv(12) == b"HTTP/1.1 408"
        for connection in (silent, begun):
            connection.close()


def test_idle_connections_beyond_the_descriptors_are_one_line(bundle: Bundle) -> None:
    before = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    with serving(bundle.path, before=before) as running:
        idle = [socket.create_connection(("127.0.0.1", running.port), timeout=30) for _ in range(80)]
        assert get(running.port, "/livez")[0] == 200
        assert post(running.port, part(make_dicom()))[0] == 200
        for connection in idle:
            connection.close()
        assert get(running.port, "/readyz")[0] == 200
    lines = [line for line in running.said if "Traceback" in line or "Errno" in line or "connections are in use" in line]
    assert len(lines) == 1
    assert "All 12 connections are in use: idle ones are closed, and others refused." in lines[0]


def test_a_study_ends_with_its_client(bundle: Bundle) -> None:
    """A study of many slow frames takes the only core; it is given up as soon as nobody waits for it."""
    volume = make_dicom(np.zeros((480, 48, 40), np.uint16) + np.arange(48, dtype=np.uint16)[:, None])
    with serving(bundle.path, before=SLOW) as running:
        gone = [socket.create_connection(("127.0.0.1", running.port), timeout=60) for _ in range(3)]
        body = part(volume)
        head = HEAD.replace(b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(body))
        for connection in gone:
            connection.sendall(head + body)
        wait_until(lambda: get_places(running) == 3)
        for connection in gone:
            connection.close()
        wait_until(lambda: get_places(running) == 0)
        assert post(running.port, part(make_dicom()))[0] == 200


def test_a_stopped_service_finishes_what_is_being_scored(bundle: Bundle) -> None:
    """Of 20 studies some are being scored; the others are told to come back, and no request is lost."""
    volume = make_dicom(np.zeros((20, 48, 40), np.uint16) + np.arange(48, dtype=np.uint16)[:, None])
    with serving(bundle.path, before=SLOW) as running, ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(post, running.port, part(volume)) for _ in range(20)]
        wait_until(lambda: get_places(running) == 20)
        uploading = socket.create_connection(("127.0.0.1", running.port), timeout=60)
        uploading.sendall(HEAD + b"1\r\n-\r\n")
        wait_until(lambda: get_places(running) == 21)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: get(running.port, "/readyz")[0] == 503)
        assert get(running.port, "/readyz")[1]["type"] == "urn:octray:problem:stopping"
        assert uploading.recv(12) == b"HTTP/1.1 503"
        uploading.close()
        statuses = [one.result() for one in answers]
        assert running.wait() == 0
    counts = Counter(status for status, _ in statuses)
    assert {*counts} == {200, 503}
    assert counts[503] >= 12, "at most four small studies are scored together, and few were finished before"
    assert {got["type"] for status, got in statuses if status == 503} == {"urn:octray:problem:stopping"}
    assert "Traceback" not in "".join(running.said)


def test_a_stopped_service_does_not_wait_longer_than_its_grace(bundle: Bundle) -> None:
    volume = make_dicom(np.zeros((480, 48, 40), np.uint16) + np.arange(48, dtype=np.uint16)[:, None])
    with serving(bundle.path, before=SLOW + shorter(grace_seconds=0.5)) as running, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, running.port, part(volume))
        wait_until(lambda: get_places(running) == 1)
        assert running.stop(signal.SIGTERM) == 0
        assert asked.result()[0] == 503
    assert "Traceback" not in "".join(running.said)


# The disk and the memory


def test_what_has_no_room_on_the_disk_is_refused_beforehand(bundle: Bundle, tmp_path: Path) -> None:
    with serving(bundle.path, "--max-upload-mib", "1", "--upload-folder", str(tmp_path)) as running:
        status, problem = post(running.port, part(bytes(2**21)))
        assert (status, problem["type"]) == (507, "urn:octray:problem:no-space")
        assert post(running.port, part(make_dicom()))[0] == 200
        (folder,) = tmp_path.iterdir()
        while [path.name for path in folder.iterdir()] != ["lock"]:  # what an answer was made of goes after the answer
            pass
        assert running.stop(signal.SIGKILL) < 0
    assert folder.exists()
    with serving(bundle.path, "--upload-folder", str(tmp_path)):
        assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_stays_small_whatever_is_sent(bundle: Bundle) -> None:
    """Files of a megabyte, 500 of them in a request: the service holds none of them in memory."""
    one = ('name="files"; filename="a.bin"', bytes(range(256)) * 4096)
    body = form(*[one] * 500)
    with serving(bundle.path, "--max-body-mib", "600") as running:
        for _ in range(4):
            assert post(running.port, body)[0] == 422
        status = Path(f"/proc/{running.process.pid}/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert int(peak) < 600 * 1024


# Workers that somebody else ends


def test_a_study_whose_workers_are_ended_again_and_again_is_not_blamed(bundle: Bundle) -> None:
    """Both attempts are killed from outside: the client is asked to come back, and then gets its answer."""
    volume = make_dicom(np.zeros((480, 48, 40), np.uint16) + np.arange(48, dtype=np.uint16)[:, None])
    with serving(bundle.path, before=SLOW) as running, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, running.port, part(volume))
        wait_until(lambda: get_places(running) == 1)
        killed: set[int] = set()
        while not asked.done():
            for worker in workers_of(running.process.pid) - killed:
                time.sleep(0.5)
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
        status, problem = asked.result()
        assert (status, problem["type"]) == (503, "urn:octray:problem:no-worker")
        assert post(running.port, part(make_dicom()))[0] == 200


def shorter(**limits: float) -> str:
    """What makes a service begin with other limits than the defaults."""
    return f"""
import dataclasses, services.api.options as options
class Shorter(options.Settings):
    __slots__ = ()
    def __init__(self, **asked):
        super().__init__(**asked | {limits!r})
options.Settings = Shorter
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def get_places(running: Server) -> int:
    """How many uploads the service holds: each has a folder until its request is answered."""
    (folder,) = [path for path in Path(tempfile.gettempdir()).glob("octray-uploads-*") if is_of(path, running.process.pid)]
    return sum(path.is_dir() for path in folder.iterdir())


def is_of(folder: Path, process: int) -> bool:
    return any(path.exists() and path.readlink() == folder / "lock" for path in Path(f"/proc/{process}/fd").iterdir())


def workers_of(process: int) -> set[int]:
    found: set[int] = set()
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended
            found |= {int(child) for child in path.read_text().split()}
    return found


# How it ends


def test_it_ends_with_130_when_it_is_interrupted(bundle: Bundle) -> None:
    with serving(bundle.path) as running:
        assert get(running.port, "/livez")[0] == 200
        assert running.stop() == 130
        assert "Traceback" not in "".join(running.said)


def test_a_port_in_use_is_one_sentence(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["-m", "services.api", "--bundle", str(bundle.path), "--port", str(port)]
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"octray: Cannot listen on 127.0.0.1 port {port}: Address already in use. Give another with --port or --host.\n"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--concurrency", "-1"), "--concurrency must be at least 0. Got -1 instead."),
        (("--max-body-mib", "0"), "--max-body-mib must be at least 1. Got 0 instead."),
        (("--max-upload-mib", "0"), "--max-upload-mib must be at least 1. Got 0 instead."),
        (("--upload-folder", "/proc"), "Uploads cannot be kept in proc"),
        (("--port", "70000"), "The port must be between 0 and 65535. Got 70000 instead."),
        (("--bundle", "absent"), "absent is not a bundle: it has no readable manifest.json."),
    ],
)
def test_what_cannot_be_served_is_one_sentence(bundle: Bundle, options: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(OctrayError) as caught:
        run("--bundle", str(bundle.path), *options)
    assert str(caught.value).startswith(sentence)


def test_an_altered_bundle_is_not_served(tmp_path: Path) -> None:
    altered = make_bundle(tmp_path / "bundle")
    (altered.path / GRAPH).write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model.onnx of bundle bundle does not match its hash"):
        run("--bundle", str(altered.path))


def run(*options: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(options))

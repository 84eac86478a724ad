"""The service as a process of its own, over real sockets."""

import argparse
import http.client
import json
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import BundleError, OctrayError
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.model.bundle import GRAPH, Bundle
from pipeline.score.predictor import Predictor
from services.api import command
from services.api.options import Settings
from tests.builders import make_bundle, make_dicom

HEAD = (
    b"POST /v1/predict HTTP/1.1\r\nHost: octray\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
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

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
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
def serving(bundle: Path, *options: str) -> Iterator[Server]:
    arguments = ["-c", START, "--bundle", str(bundle), "--port", "0", *options]
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
    with serving(bundle.path, "--max-body-mib", "1", "--threads", "1") as running:
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


def part(content: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n' + content + b"\r\n--b--\r\n"


def post(port: int, body: bytes) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/predict", body, {"Content-Type": "multipart/form-data; boundary=b"})
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


def test_open_uploads_are_counted_and_others_are_told_to_come_back(server: Server) -> None:
    """One connection more than there are places: exactly one of them is answered, and it is told to come back."""
    places = Settings().concurrency + Settings().queue
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(places + 1)]
    for connection in held:
        connection.sendall(HEAD)
    (refused,) = select.select(held, (), (), 30)[0]
    with http.client.HTTPResponse(refused) as response:
        response.begin()
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        assert json.loads(response.read())["detail"] == "The service is busy. Try again in a few seconds."
    assert post(server.port, part(make_dicom()))[0] == 503
    assert get(server.port, "/livez") == (200, {"status": "alive"})
    for connection in held:
        connection.close()
    assert wait_for(server, 200)[0] == 200


def wait_for(server: Server, status: int) -> tuple[int, dict]:
    """Post until the server, which sees connections come and go in its own time, answers with `status`."""
    for _ in range(200):
        result = post(server.port, part(make_dicom()))
        if result[0] == status:
            break
        time.sleep(0.05)
    return result


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
        (("--concurrency", "0"), "--concurrency must be at least 1. Got 0 instead."),
        (("--max-body-mib", "0"), "--max-body-mib must be at least 1. Got 0 instead."),
        (("--threads", "-1"), "--threads must be at least 0. Got -1 instead."),
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

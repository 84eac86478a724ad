"""The cards, and downloads from a real server on this machine."""

import csv
import hashlib
import io
import socket
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.catalog import Card, KnownFile, Pull, find_card, list_datasets, pull_dataset
from pipeline.errors import DownloadError, InputError
from pipeline.frames import TRAINING_SPLITS

SHARED = ("cxr-pediatric", "oct-kermany", "oct-octdl-crops", "oct-spectralis-vol", "dicom-samples", "dicom-malformed")
OTHERS = ("pneumoniamnist", "octmnist", "kermany-2018", "nih-chestxray14", "rsna-pneumonia", "octdl")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


def make_archive(counts: dict[str, int] | None = None, **overrides: np.ndarray) -> bytes:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (counts or {"train": 5, "val": 3, "test": 4}).items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8).reshape(-1, 1)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **(arrays | overrides))
    return buffer.getvalue()


def make_card(url: str, checksum: str) -> Card:
    known = KnownFile(name="tiny.npz", checksum=checksum)
    return Card(
        name="tiny",
        title="Tiny",
        source="https://example.org/tiny",
        licence="CC0",
        citation="None.",
        modalities=("CR",),
        formats=("PNG",),
        labels={},
        patient_key="none",
        ingest="octray ingest tiny",
        biases=("Random.",),
        pull=Pull(url=url, file=known, unpack="medmnist", classes=("NORMAL", "PNEUMONIA")),
    )


def serve_archive(server: tuple[str, Path], content: bytes) -> Card:
    address, folder = server
    (folder / "tiny.npz").write_bytes(content)
    return make_card(f"{address}/tiny.npz", f"sha256:{hashlib.sha256(content).hexdigest()}")


def test_there_is_a_card_for_every_set() -> None:
    assert {card.name for card in list_datasets()} >= {*SHARED, *OTHERS}


@pytest.mark.parametrize("card", list_datasets(), ids=lambda card: card.name)
def test_a_card_counts_no_more_than_its_images(card: Card) -> None:
    counts = [count for count in card.labels.values() if count is not None]
    several_labels_an_image = card.name == "nih-chestxray14"
    if card.images is not None and len(counts) == len(card.labels) and counts and not several_labels_an_image:
        assert sum(counts) == card.images
    assert all(count <= (card.images or count) for count in counts)


@pytest.mark.parametrize("name", ["cxr-pediatric", "oct-kermany"])
def test_a_card_agrees_with_the_labels_that_are_there(name: str, shared_data: Path) -> None:
    card = find_card(name)
    with (shared_data / name / "labels.csv").open() as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert {label: labels.count(label) for label in set(labels)} == dict(card.labels)


@pytest.mark.parametrize("card", [card for card in list_datasets() if card.name in SHARED], ids=lambda card: card.name)
def test_checksums_are_those_of_the_files(card: Card, shared_data: Path) -> None:
    for file in card.files:
        digest = hashlib.sha256((shared_data / card.name / file.name).read_bytes()).hexdigest()
        assert file.checksum == f"sha256:{digest}"


def test_what_is_pulled_is_one_of_the_known_files() -> None:
    pulled = [card for card in list_datasets() if card.pull]
    assert {card.name for card in pulled} == {"pneumoniamnist", "octmnist"}
    for card in pulled:
        assert card.pull is not None
        assert card.pull.file in card.files
        assert set(card.pull.classes) == set(card.labels)


@pytest.mark.parametrize(
    ("name", "hint"), [("pneumonia-mnist", "Did you mean pneumoniamnist?"), ("zzz", "There are: cxr-pediatric,")]
)
def test_an_unknown_name_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"no data set '{name}'") as caught:
        find_card(name)
    assert hint in str(caught.value)


def test_a_set_without_download_says_where_it_is() -> None:
    with pytest.raises(InputError, match=r"octray cannot download rsna-pneumonia. Get it by hand from https://www.rsna.org"):
        pull_dataset(find_card("rsna-pneumonia"), Path("unused"))


def test_a_pulled_set_is_images_with_labels_and_splits(server: tuple[str, Path], tmp_path: Path) -> None:
    content = make_archive()
    bars: list[tuple[str, int]] = []

    def progress(items: Iterable, description: str, total: int | None = None) -> Iterable:
        items = list(items)
        bars.append((description, len(items)))
        assert total == len(items)
        return items

    folder = pull_dataset(serve_archive(server, content), tmp_path / "to", progress=progress)

    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {split: sum(row["split"] == split for row in rows) for split in TRAINING_SPLITS} == {
        "train": 5,
        "tune": 2,
        "calibration": 1,
        "test": 4,
    }
    expected = np.load(io.BytesIO(content))
    images = np.concatenate([expected[f"{split}_images"] for split in ("train", "val", "test")])
    labels = np.concatenate([expected[f"{split}_labels"] for split in ("train", "val", "test")]).ravel()
    for row, image, label in zip(rows, images, labels, strict=True):
        assert row["label"] == ("NORMAL", "PNEUMONIA")[label]
        np.testing.assert_array_equal(np.asarray(Image.open(folder / row["file"])), image)
    assert bars == [("tiny.npz", 1), ("unpacking train", 5), ("unpacking val", 3), ("unpacking test", 4)]


def test_a_second_pull_needs_no_server(server: tuple[str, Path], tmp_path: Path) -> None:
    card = serve_archive(server, make_archive())
    first = pull_dataset(card, tmp_path / "to")
    (server[1] / "tiny.npz").unlink()
    assert pull_dataset(card, tmp_path / "to") == first


def test_an_interrupted_unpacking_is_done_again(server: tuple[str, Path], tmp_path: Path) -> None:
    card = serve_archive(server, make_archive())
    folder = pull_dataset(card, tmp_path / "to")
    whole = (folder / "labels.csv").read_bytes()
    (folder / "labels.csv").unlink()
    (folder / "NORMAL" / "train-000000.png").unlink()
    pull_dataset(card, tmp_path / "to")
    assert (folder / "labels.csv").read_bytes() == whole
    assert (folder / "NORMAL" / "train-000000.png").is_file()


def test_a_wrong_checksum_keeps_nothing(server: tuple[str, Path], tmp_path: Path) -> None:
    card = serve_archive(server, make_archive())
    (server[1] / "tiny.npz").write_bytes(make_archive() + b"altered")
    with pytest.raises(DownloadError, match="has the wrong checksum, so it was not kept") as caught:
        pull_dataset(card, tmp_path / "to")
    assert "put it into the folder to under the name tiny.npz" in str(caught.value)
    assert list((tmp_path / "to").iterdir()) == []


def test_a_missing_file_says_what_the_server_answered(server: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"tiny.npz cannot be downloaded from http.*\(the server answered 404\)"):
        pull_dataset(make_card(f"{server[0]}/absent.npz", f"md5:{'0' * 32}"), tmp_path / "to")


def test_a_refused_connection_says_so(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/tiny.npz"
        with pytest.raises(DownloadError, match=r"no connection, or it was lost.*download it elsewhere"):
            pull_dataset(make_card(address, f"md5:{'0' * 32}"), tmp_path / "to")


def test_a_folder_that_cannot_be_written_says_so(server: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"tiny.npz cannot be downloaded from .* \(Not a directory\)"):
        pull_dataset(serve_archive(server, make_archive()), tmp_path / "file" / "to")


@pytest.mark.parametrize(
    "content",
    [
        b"text",
        make_archive({"train": 2}),
        make_archive(val_labels=np.array([[7], [0], [0]])),
        make_archive(val_labels=np.array([[-1], [0], [0]])),
        make_archive(val_labels=np.zeros((9, 1), np.uint8)),
        make_archive(val_images=np.array([None, {}, []], dtype=object)),
    ],
    ids=["no-zip", "a-split-is-missing", "unknown-class", "negative-class", "more-labels-than-images", "pickled"],
)
def test_another_archive_is_refused(server: tuple[str, Path], tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DownloadError, match=r"tiny.npz is not an archive of MedMNIST"):
        pull_dataset(serve_archive(server, content), tmp_path / "to")
    assert not (tmp_path / "to" / "images" / "labels.csv").exists()

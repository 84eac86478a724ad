"""The catalogue of public data sets: one card for each, and the download of those that a program can fetch."""

import csv
import difflib
import logging
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from pipeline.atomic import replacing_text
from pipeline.errors import DownloadError, InputError
from pipeline.frames import Split
from pipeline.progress import Progress, silent

LABELS = "labels.csv"
_SPLITS = {"train": (Split.TRAIN,), "val": (Split.TUNE, Split.CALIBRATION), "test": (Split.TEST,)}
_CHUNK = 2**20
_SECONDS = 30

# Cards


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KnownFile(_Part):
    """A file of a data set with its checksum: `sha256:` or `md5:` and hexadecimal digits."""

    name: str
    checksum: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")]


class Pull(_Part):
    """What `octray data pull` downloads, and how to unpack it; `classes` names the class numbers 0, 1, 2... of the archive."""

    url: str
    file: KnownFile
    unpack: Literal["medmnist"]
    classes: Annotated[tuple[str, ...], Field(min_length=2)]


class Card(_Part):
    """The description of one data set; unknown values are left out.

    `labels` maps each finding to its number of images, None if they were not counted. `modalities` are values of Modality
    (0008,0060), or would be if the files were DICOM. `formats` are rows of README's table of what octray reads. `images` is the
    number of images.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: str
    source: str
    licence: str
    citation: str
    modalities: tuple[str, ...]
    formats: Annotated[tuple[str, ...], Field(min_length=1)]
    images: int | None = None
    labels: Mapping[str, int | None]
    patient_key: str
    ingest: str
    biases: Annotated[tuple[str, ...], Field(min_length=1)]
    files: tuple[KnownFile, ...] = ()
    pull: Pull | None = None


def list_datasets() -> tuple[Card, ...]:
    """Return the cards of the public data sets that octray knows, by name."""
    files = [file for file in resources.files("data_catalog").iterdir() if file.name.endswith(".yaml")]
    cards = [Card.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files]
    return tuple(sorted(cards, key=lambda card: card.name))


def find_card(name: str) -> Card:
    """Return the card called `name`.

    Raises
    ------
    InputError
        If there is none; the message has the nearest name.
    """
    cards = {card.name: card for card in list_datasets()}
    if name in cards:
        return cards[name]
    near = difflib.get_close_matches(name.lower(), cards, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? `octray data list` shows all of them." if near else f"There are: {', '.join(cards)}."
    raise InputError(f"The catalogue has no data set {name!r}. {hint}")


# Downloads


def pull_dataset(card: Card | str, folder: Path | str | None = None, *, progress: Progress = silent) -> Path:
    """Download a data set and unpack it to images and `labels.csv`; existing files are not downloaded again.

    Parameters
    ----------
    card
        The data set, or its name.
    folder
        The folder for it, created if it does not exist; data/NAME if None.
    progress
        Shows how much is done.

    Returns
    -------
    Path
        The folder to give to `octray ingest`; its `labels.csv` is written last.

    Raises
    ------
    InputError
        If there is no data set of this name, or no program can download it.
    DownloadError
        If it cannot be reached, or its checksum is wrong.
    """
    card = find_card(card) if isinstance(card, str) else card
    folder = Path("data") / card.name if folder is None else Path(folder)
    if card.pull is None:
        raise InputError(f"octray cannot download {card.name}. Get it by hand from {card.source}; then: {card.ingest}")
    archive = _download(card.pull, folder, progress)
    return unpack_medmnist(archive, folder / "images", card.pull.classes, progress)


def _download(wanted: Pull, folder: Path, progress: Progress) -> Path:
    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    name = wanted.file.name
    downloader = pooch.HTTPDownloader(progressbar=_Bar(progress, name), chunk_size=_CHUNK, timeout=_SECONDS)
    try:
        return Path(pooch.retrieve(wanted.url, wanted.file.checksum, fname=name, path=folder, downloader=downloader))
    except ValueError:
        what = f"{name} from {wanted.url} has the wrong checksum, so it was not kept"
    except OSError as error:
        what = f"{name} cannot be downloaded from {wanted.url} ({_reason(error)})"
    raise DownloadError(
        f"{what}. Try again later. Or download it elsewhere, check that it is {wanted.file.checksum}, put it into the folder "
        f"{folder.name} under the name {name}, and run `octray data pull` again."
    )


def _reason(error: OSError) -> str:
    """Return a few words on why a download failed."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status:
        return f"the server answered {status}"
    is_from_the_network = hasattr(error, "request")
    return "no connection, or it was lost" if is_from_the_network else error.strerror or "it cannot be written"


class _Bar:
    """Lets pooch, which pushes, drive a `Progress`, which pulls: one item for each chunk."""

    def __init__(self, progress: Progress, description: str) -> None:
        self.total = 0
        self._progress = progress
        self._description = description
        self._items: Iterator[Any] | None = None

    def update(self, size: int) -> None:
        if self._items is None:
            chunks = math.ceil(self.total / _CHUNK)
            self._items = iter(self._progress(range(chunks), self._description, chunks))
        next(self._items, None)

    def reset(self) -> None:
        """Do nothing: pooch resets the bar at its end in order to fill it."""

    def close(self) -> None:
        for _ in self._items or ():
            pass


# MedMNIST archives


def unpack_medmnist(archive: Path, folder: Path, classes: Sequence[str], progress: Progress = silent) -> Path:
    """Write every image of an archive (.npz) to `folder`/CLASS/SPLIT-NUMBER.png, and `labels.csv` last.

    Parameters
    ----------
    archive
        With `train_images`, `val_images`, `test_images`, uint8 of shape (n, rows, columns), and `train_labels` and so on,
        integers of shape (n, 1). It is read image by image, so that memory does not grow with it, and nothing is unpickled.
    folder
        Created if it does not exist. If it contains `labels.csv`, nothing is done.
    classes
        The names of the class numbers 0, 1, 2...
    progress
        Shows how many images are written.

    Returns
    -------
    Path
        `folder`. `labels.csv` has the columns file, label, split; images of `val` go to tune and to calibration in turn. These
        archives do not name patients.

    Raises
    ------
    DownloadError
        If the archive has another form.
    """
    if (folder / LABELS).is_file():
        return folder
    try:
        with zipfile.ZipFile(archive) as content:
            rows = [row for name in _SPLITS for row in _unpack_split(content, name, folder, classes, progress)]
    except (KeyError, ValueError, IndexError, OSError, zipfile.BadZipFile):
        raise DownloadError(f"{archive.name} is not an archive of MedMNIST. Delete it and download it again.") from None
    with replacing_text(folder / LABELS) as file:
        writer = csv.writer(file)
        writer.writerow(("file", "label", "split"))
        writer.writerows(rows)
    return folder


def _unpack_split(
    content: zipfile.ZipFile, name: str, folder: Path, classes: Sequence[str], progress: Progress
) -> Iterator[tuple[str, str, str]]:
    with content.open(f"{name}_labels.npy") as stream:
        numbers = [int(item.reshape(-1)[0]) for item in _items(stream)]
    if min(numbers, default=0) < 0:
        raise ValueError(numbers)
    with content.open(f"{name}_images.npy") as stream:
        images = progress(_items(stream), f"unpacking {name}", len(numbers))
        for index, (number, image) in enumerate(zip(numbers, images, strict=True)):
            file = Path(classes[number]) / f"{name}-{index:06d}.png"
            (folder / file.parent).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / file)
            splits = _SPLITS[name]
            yield file.as_posix(), file.parent.name, splits[index % len(splits)].value


def _items(stream: IO[bytes]) -> Iterator[NDArray[np.uint8]]:
    """Yield the items of a .npy stream along its first axis; only integers, never objects."""
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if fortran or dtype.kind not in "ui" or not shape:
        raise ValueError(dtype)
    size = dtype.itemsize * int(np.prod(shape[1:]))
    for _ in range(shape[0]):
        yield np.frombuffer(stream.read(size), dtype).reshape(shape[1:])

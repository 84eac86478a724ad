"""The catalogue of data sets: one card for each, and the download of those that can be fetched."""

import difflib
import logging
import math
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipeline.catalog.medmnist import unpack
from pipeline.errors import DownloadError, InputError
from pipeline.progress import Progress, silent

_CHUNK = 2**20
_SECONDS = 30


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KnownFile(_Part):
    """A file of a data set whose hash is known: `sha256:` or `md5:` and hex digits."""

    name: str
    checksum: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")]


class Pull(_Part):
    """What `octray data pull` fetches and how it comes to be files that `octray ingest` reads.

    `classes` are the names of the numbers 0, 1, 2... in the archive.
    """

    url: str
    file: KnownFile
    unpack: Literal["medmnist"]
    classes: Annotated[tuple[str, ...], Field(min_length=2)]


class Card(_Part):
    """What is known of one data set; what is not known is left out.

    `labels` maps each finding to its number of images, None where that was not counted; `modalities` are values of Modality
    (0008,0060), or what they would be had the files been DICOM; `formats` are rows of README's table of what octray reads;
    `images` is the number of images.
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


def load_cards() -> tuple[Card, ...]:
    """Return every card that ships with octray, by name."""
    files = [file for file in resources.files("data_catalog").iterdir() if file.name.endswith(".yaml")]
    cards = [Card.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files]
    return tuple(sorted(cards, key=lambda card: card.name))


def find_card(name: str) -> Card:
    """Return the card called `name`.

    Raises
    ------
    InputError
        Where there is none, with the nearest name.
    """
    cards = {card.name: card for card in load_cards()}
    if name in cards:
        return cards[name]
    near = difflib.get_close_matches(name.lower(), cards, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(cards)}."
    raise InputError(f"The catalogue has no data set {name!r}. {hint}")


def pull(card: Card, folder: Path, progress: Progress = silent) -> Path:
    """Fetch a data set and unpack it to images and `labels.csv`; what is there already is not fetched again.

    Parameters
    ----------
    card
        The data set.
    folder
        Where to put it; created where it is missing.

    Returns
    -------
    Path
        The folder to give to `octray ingest`; its `labels.csv` is written last.

    Raises
    ------
    InputError
        Where the data set cannot be fetched by a program.
    DownloadError
        Where it cannot be reached, or is not what its checksum says.
    """
    if card.pull is None:
        raise InputError(f"{card.name} cannot be fetched by octray. Get it by hand from {card.source}; then: {card.ingest}")
    archive = _fetch(card.pull, folder, progress)
    return unpack(archive, folder / "images", card.pull.classes, progress)


def _fetch(wanted: Pull, folder: Path, progress: Progress) -> Path:
    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    name = wanted.file.name
    downloader = pooch.HTTPDownloader(progressbar=_Bar(progress, name), chunk_size=_CHUNK, timeout=_SECONDS)
    try:
        return Path(pooch.retrieve(wanted.url, wanted.file.checksum, fname=name, path=folder, downloader=downloader))
    except ValueError:
        what = f"{name} from {wanted.url} is not the file that octray expects: its checksum differs. Nothing was kept"
    except OSError as error:
        what = f"{name} cannot be fetched from {wanted.url} ({_reason(error)})"
    raise DownloadError(
        f"{what}. Try again later, or fetch it elsewhere, check that it is {wanted.file.checksum}, and put it into the folder "
        f"{folder.name} under the name {name} before the next `octray data pull`."
    )


def _reason(error: OSError) -> str:
    """Return a few words on why a download failed."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status:
        return f"the server answered {status}"
    is_from_the_network = hasattr(error, "request")
    return "no connection, or it broke" if is_from_the_network else error.strerror or "it cannot be written"


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
        """Pooch resets the bar at its end in order to fill it; nothing is to be done."""

    def close(self) -> None:
        for _ in self._items or ():
            pass

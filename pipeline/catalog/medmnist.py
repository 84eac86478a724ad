"""Unpacks a MedMNIST archive (.npz) to PNG files and a `labels.csv` that `octray ingest` reads."""

import csv
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.atomic import replacing_text
from pipeline.errors import DownloadError
from pipeline.frames import Split
from pipeline.progress import Progress, silent

LABELS = "labels.csv"
_SPLITS = {"train": (Split.TRAIN,), "val": (Split.TUNE, Split.CALIBRATION), "test": (Split.TEST,)}


def unpack(archive: Path, folder: Path, classes: Sequence[str], progress: Progress = silent) -> Path:
    """Write every image of `archive` to `folder`/<class>/<split>-<number>.png, and `labels.csv` last.

    Parameters
    ----------
    archive
        With `train_images`, `val_images`, `test_images`, uint8 of shape (n, rows, columns), and `train_labels` and so on,
        integers of shape (n, 1). It is read image by image, so that memory does not grow with it, and nothing is unpickled.
    folder
        Created where it is missing; where it holds a `labels.csv` already, nothing is done.
    classes
        What the numbers 0, 1, 2... mean.

    Returns
    -------
    Path
        `folder`; `labels.csv` has the columns file, label, split: images of `val` go to tune and to calibration in turn. There
        are no patients in these archives.

    Raises
    ------
    DownloadError
        Where the archive is not of that form.
    """
    if (folder / LABELS).is_file():
        return folder
    try:
        with zipfile.ZipFile(archive) as content:
            rows = [row for name in _SPLITS for row in _unpack_split(content, name, folder, classes, progress)]
    except (KeyError, ValueError, IndexError, OSError, zipfile.BadZipFile):
        raise DownloadError(f"{archive.name} is not an archive of MedMNIST. Delete it and fetch it again.") from None
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
    with content.open(f"{name}_images.npy") as stream:
        images = progress(_items(stream), f"Unpacking {name}", len(numbers))
        for place, (number, image) in enumerate(zip(numbers, images, strict=True)):
            file = Path(_named(classes, number)) / f"{name}-{place:06d}.png"
            (folder / file.parent).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / file)
            splits = _SPLITS[name]
            yield file.as_posix(), file.parent.name, splits[place % len(splits)].value


def _named(classes: Sequence[str], number: int) -> str:
    if number < 0:
        raise ValueError(number)
    return classes[number]


def _items(stream: IO[bytes]) -> Iterator[NDArray[np.uint8]]:
    """Yield the items of a .npy stream along its first axis; only whole numbers of one byte or more, never objects."""
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if fortran or dtype.kind not in "ui" or not shape:
        raise ValueError(dtype)
    size = dtype.itemsize * int(np.prod(shape[1:]))
    for _ in range(shape[0]):
        yield np.frombuffer(stream.read(size), dtype).reshape(shape[1:])

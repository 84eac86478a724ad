"""Reads the files of OCT devices of Heidelberg, Topcon and Zeiss: from bytes to one `Frame` for each B-scan."""

from collections.abc import Callable, Iterator

from pipeline.frames import Frame
from pipeline.imaging.vendor.heidelberg_e2e import MAGIC as E2E
from pipeline.imaging.vendor.heidelberg_e2e import read_e2e
from pipeline.imaging.vendor.heidelberg_vol import MAGIC as VOL
from pipeline.imaging.vendor.heidelberg_vol import read_vol
from pipeline.imaging.vendor.topcon import MAGIC as TOPCON
from pipeline.imaging.vendor.topcon import read_topcon
from pipeline.imaging.vendor.zeiss import is_named_by_the_device, is_named_img, read_img
from pipeline.settings import Reading

Reader = Callable[[bytes, str, Reading], Iterator[Frame]]

_READERS: tuple[tuple[bytes | tuple[bytes, ...], Reader], ...] = ((VOL, read_vol), (E2E, read_e2e), (TOPCON, read_topcon))


__all__ = ["is_named_by_the_device", "vendor_reader"]


def vendor_reader(head: bytes, source: str) -> Reader | None:
    """Return what reads a file that begins with `head`; only `.img` is known by its name, as it has no header."""
    for magic, reader in _READERS:
        if head.startswith(magic):
            return reader
    return read_img if is_named_img(source) else None

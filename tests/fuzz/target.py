"""A target for atheris: whatever the bytes are, reading them ends as frames or as `UnreadableError`."""

import sys

import atheris

with atheris.instrument_imports(include=["pipeline", "pydicom", "tifffile"]):
    from pipeline.errors import UnreadableError
    from pipeline.imaging.sources import read_frames_from_bytes
    from pipeline.settings import Limits, Reading

LIMITS = Limits(frame_pixels=2**20, file_pixels=2**22, inflated_bytes=2**22)
READINGS = (Reading(LIMITS), Reading(LIMITS, side=32, hashes=False))


def read_once(content: bytes) -> None:
    """Read the bytes whole, and at a reduced resolution."""
    for reading in READINGS:
        try:
            for frame in read_frames_from_bytes(content, "512x4_x_OD_x_cube_z.img", reading):
                assert 0 <= frame.pixels.min() <= frame.pixels.max() <= 1
        except UnreadableError:
            continue


if __name__ == "__main__":
    atheris.Setup(sys.argv, read_once)
    atheris.Fuzz()

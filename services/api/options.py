"""What an operator may set about the service."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of the service.

    Parameters
    ----------
    max_body_bytes
        Most bytes of a whole request body; more is answered with 413.
    max_files
        Most files of one study.
    concurrency
        Studies that are computed at the same time.
    queue
        Requests that may be open beyond those; more are answered with 503.
    threads
        Threads of the inference engine; 0 means one for each core that the process may use.
    upload_seconds
        Longest time that a request body may take to arrive; a slower one is answered with 408.
    study_seconds
        How long one study may take to be read and scored; files not read by then are listed in the answer's failures. The
        file that is being read then is given up at its next frame.
    max_heatmaps
        Most heatmaps in one answer, which holds them in memory as base64, up to about a megabyte each; frames beyond it are
        scored without one and say so in their flags.
    """

    max_body_bytes: int = 512 * 2**20
    max_files: int = 1000
    concurrency: int = 1
    queue: int = 8
    threads: int = 0
    upload_seconds: float = 120.0
    study_seconds: float = 120.0
    max_heatmaps: int = 256

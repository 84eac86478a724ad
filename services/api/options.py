"""What an operator may set about the service."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of the service.

    Parameters
    ----------
    max_connections
        Connections that may be open, or fewer if the process may not open as many files; then idle ones are closed, and
        others answered with 503.
    max_body_bytes
        Most bytes of a whole request body; more is answered with 413.
    max_files
        Most files of one study; more are answered with 413.
    max_uploads
        Bodies that may arrive at the same time; further requests are answered with 503.
    max_upload_bytes
        Most bytes on disk of all requests together, uploads and heatmaps; what has no room is answered with 507.
    upload_folder
        Where the folder for uploads is made; empty takes the system's temporary folder.
    upload_seconds
        Longest time that a request body may take to arrive; a slower one is answered with 408.
    upload_rate
        Least bytes a second of a request body, on average after the first `idle_seconds`; a slower one is answered with 408.
    idle_seconds
        How long a connection may be without a request, a head may take to arrive, and a client may send nothing of a body or
        take nothing of its answer.
    concurrency
        Studies that are computed at the same time, each on one core; 0 takes one for each core that the process may use.
    queue
        Studies that may wait for their turn; further ones are answered with 503.
    grace_seconds
        How long a service that is being stopped goes on with what is being scored.
    study_seconds
        How long one study may take to be read and scored; files not read by then are listed in the answer's failures. The
        file that is being read then is given up at its next frame.
    max_heatmaps
        Most heatmaps in one answer, each up to about a megabyte; frames beyond it are scored without one and say so in their
        flags.
    """

    max_connections: int = 512
    max_body_bytes: int = 512 * 2**20
    max_files: int = 1000
    max_uploads: int = 32
    max_upload_bytes: int = 4 * 2**30
    upload_folder: str = ""
    upload_seconds: float = 120.0
    upload_rate: int = 1000
    idle_seconds: float = 10.0
    concurrency: int = 0
    queue: int = 32
    grace_seconds: float = 20.0
    study_seconds: float = 120.0
    max_heatmaps: int = 256

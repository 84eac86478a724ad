"""What a run of de-identification is asked, and whether old and new files would stay apart."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.deidentify.crosswalk import crosswalk_path
from pipeline.deidentify.done import done_path
from pipeline.deidentify.options import Options
from pipeline.errors import ConfigError, InputError
from pipeline.imaging.files.names import as_text
from pipeline.imaging.quality import ocr


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked.

    Parameters
    ----------
    out
        Where the new files go, as `PSEUDONYM/STUDY/SERIES/INSTANCE.dcm`; it holds nothing of the original names.
    key
        The key file, made where there is none. The crosswalk lies beside it.
    options
        What is kept and what is blanked.
    """

    out: Path
    key: Path
    options: Options = field(default_factory=Options)

    def check(self, sources: Iterable[Path]) -> None:
        """Find out whether old and new files, and the key, are apart, before anything is read.

        Raises
        ------
        InputError
            Where they are not.
        ConfigError
            Where text is to be found and the extra for it is not installed.
        """
        output = self.out.resolve()
        if output.exists() and not output.is_dir():
            raise InputError(f"{as_text(self.out.name)} is a file. The output must be a folder, new or of earlier runs.")
        for source in (source.resolve() for source in sources):
            if not source.exists():
                raise InputError(f"There is no file or folder {as_text(source.name)}. Check the path.")
            if output.is_relative_to(source):
                raise InputError(f"The output folder {self.out.name} lies inside the sources. Name another.")
            if source.is_relative_to(output):
                raise InputError(f"{source.name} lies inside the output folder {self.out.name}. Name another.")
        if self.key.resolve().is_relative_to(output):
            raise InputError(
                f"The key {self.key.name} lies inside the output folder, with which it would be handed on. Name another place."
            )
        if self.options.clean_pixels and not ocr.is_installed():
            raise ConfigError(["Text recognition is not installed: pip install 'octray[ocr]'."])

    @property
    def own_files(self) -> tuple[Path, ...]:
        """The files that this writes itself, and that are no studies wherever they lie."""
        return self.key, crosswalk_path(self.key), done_path(self.key)

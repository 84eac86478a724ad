"""Labels and patients from the paths of files: the names of their folders, or what a regular expression finds there."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.ingest.labels import FileFacts, FileId
from pipeline.ingest.spelling import look_like, same_text

NAME_THE_FOLDER = (
    "Name the folder that is the label with --label-from: folder:1 for the first below SOURCE, folder:2 for the second, "
    "folder:-1 for the one in which a file lies, or a regular expression with one group for the path below SOURCE."
)
_LEVEL = re.compile(r"folder:(-?[1-9][0-9]{0,3})")


def folder_labels(label_from: str, sources: Sequence[Path], files: Iterable[FileId]) -> dict[FileId, FileFacts]:
    """Take the label of each file from the names of the folders in which it lies.

    Parameters
    ----------
    label_from
        `folder` for the only folder between a source and its files, or the source itself if all its files lie at its top;
        `folder:N` for the N-th folder below the source, `folder:-1` for the one in which a file lies; or a regular expression
        with one group for the path below the source.
    sources
        What was given to read; an archive in a source is a folder.
    files
        Every file that was found.

    Returns
    -------
    dict
        What is known of the files that have a label.

    Raises
    ------
    InputError
        If `label_from` is none of these, if one of several folders could be meant, or if no file has a label.
    """
    files = list(files)
    if label_from == "folder":
        names = _only_folders(sources, {(root, file): _folders(sources[root], file) for root, file in files})
    else:
        names = names_from_paths(label_from, "--label-from", sources, files)
    facts = {file_id: FileFacts(frozenset((label,))) for file_id, name in names.items() if (label := same_text(name))}
    if not facts:
        raise InputError(f"--label-from {label_from} gives none of the {len(files)} files a label. {NAME_THE_FOLDER}")
    return facts


def names_from_paths(where: str, option: str, sources: Sequence[Path], files: Iterable[FileId]) -> dict[FileId, str]:
    """Return for each file the name of one of its folders, or what a pattern finds in its path, in one form of Unicode.

    Parameters
    ----------
    where
        `folder:N`, or a regular expression with one group that is searched for in the path below the source.
    option
        The option with which that was given, for messages.
    sources, files
        As in `folder_labels`.

    Returns
    -------
    dict
        The names; a file that has no such folder, or that the pattern does not match, is left out.

    Raises
    ------
    InputError
        If `where` is neither.
    """
    if level := _LEVEL.fullmatch(where):
        found = {(root, file): _at(_folders(sources[root], file), int(level[1])) for root, file in files}
    else:
        pattern = _path_pattern(where, option)
        matches = {file_id: pattern.search(unicodedata.normalize("NFC", file_id[1])) for file_id in files}
        found = {file_id: match[1] or "" for file_id, match in matches.items() if match}
    return {file_id: name for file_id, text in found.items() if (name := same_text(text))}


def _path_pattern(text: str, option: str) -> re.Pattern[str]:
    """Compile a regular expression with one group."""
    try:
        pattern = re.compile(unicodedata.normalize("NFC", text))
    except re.error as error:
        raise InputError(f"The value {text} of {option} is not a regular expression: {error}.") from None
    if pattern.groups != 1:
        kinds = "neither folder, nor folder:N," if option == "--label-from" else "neither folder:N"
        raise InputError(
            f"The value {text} of {option} is {kinds} nor a regular expression with one group, such as '^([^/]+)/'."
        )
    return pattern


def _folders(source: Path, file: str) -> list[str]:
    """Return the names of the folders between what was given to read and a file in it, the outermost first."""
    folders = file.split("/")[:-1]
    return folders[1:] if source.is_file() else folders


def _at(folders: Sequence[str], level: int) -> str:
    """Return the name of the folder at a level, 1 for the outermost and -1 for the innermost; empty if there is none."""
    place = level - 1 if level > 0 else level
    return folders[place] if -len(folders) <= place < len(folders) else ""


def _only_folders(sources: Sequence[Path], folders: Mapping[FileId, Sequence[str]]) -> dict[FileId, str]:
    """Return the name of the only folder of each file, or of its source if all files of that lie at its top.

    Raises
    ------
    InputError
        If files lie in folders within folders: octray does not guess which of them is the label.
    """
    deepest = Counter[int]()
    for (root, _), path in folders.items():
        deepest[root] = max(deepest[root], len(path))
    if (most := max(deepest.values(), default=0)) > 1:
        levels = [{name for path in folders.values() if (name := same_text(_at(path, level + 1)))} for level in range(most)]
        known = (
            f"folder:{level} ({len(names)} {'name' if len(names) == 1 else 'names'}{_that_look_like(names)})"
            for level, names in enumerate(levels, start=1)
        )
        raise InputError(
            f"There are up to {most} levels of folders below SOURCE, and each could be the label: {', '.join(known)}. "
            f"{NAME_THE_FOLDER}"
        )
    return {
        (root, file): path[0] if path else "" if deepest[root] else _own_name(sources[root], file)
        for (root, file), path in folders.items()
    }


def _own_name(source: Path, file: str) -> str:
    """Return the name of what was given to read; of the folder around it if that is a single picture."""
    place = source.resolve()
    return place.parent.name if place.is_file() and "/" not in file else place.name


def _that_look_like(names: Iterable[str]) -> str:
    what = look_like(list(names))
    return f" that look like {what}" if what else ""

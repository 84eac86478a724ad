"""Names of files: as text that is safe to show, and names of files that operating systems and network drives leave behind."""

import os
import re
from collections.abc import Iterable, Mapping

_ESCAPE = re.compile(r"\\(?:(\\)|x([0-9a-f]{2})|u([0-9a-f]{4})|([nrt]))")
_LINES = {"n": "\n", "r": "\r", "t": "\t"}
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_NAMES = {
    name.lower(): name
    for name in (
        # Windows
        *("Thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        *("System Volume Information", "$RECYCLE.BIN", "RECYCLER", "RECYCLED", "IndexerVolumeGuid"),
        # macOS
        *("__MACOSX", ".DS_Store", ".localized", ".Trashes", ".Trash", ".Spotlight-V100", ".fseventsd", ".TemporaryItems"),
        *(".DocumentRevisions-V100", ".VolumeIcon.icns", ".apdisk", ".com.apple.timemachine.donotpresent"),
        *(".AppleDouble", ".AppleDB", ".AppleDesktop", "Network Trash Folder", "Temporary Items", "TheVolumeSettingsFolder"),
        # Linux
        *("lost+found", ".directory"),
        # Synology, QNAP, NetApp and others
        *("@eaDir", "@tmp", "@sharebin", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "@__thumb", ".@__thumb"),
        *(".snapshot", "~snapshot", ".recycle"),
    )
}
_PATTERNS = {
    "AppleDouble (._*)": re.compile(r"\._.+"),
    ".Trash-*": re.compile(r"\.trash-\d+"),
    "FOUND.*": re.compile(r"found\.\d{3}"),
    ".nfs*": re.compile(r"\.nfs[0-9a-f]+"),
    ".fuse_hidden*": re.compile(r"\.fuse_hidden[0-9a-f]+"),
    "streams of Windows (*:Zone.Identifier)": re.compile(r".+:(zone\.identifier|afp_afpinfo|afp_resource)(:\$data)?"),
}


def leftover(name: str) -> str:
    """Return which leftover of a system a file or folder of this name is; empty if it is none."""
    name = name.lower()
    return _NAMES.get(name) or next((kind for kind, pattern in _PATTERNS.items() if pattern.fullmatch(name)), "")


def skipped_line(counts: Mapping[str, int]) -> str:
    """Return the line that says what was skipped, and how often; empty if nothing was skipped."""
    if not counts:
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))
    return f"Skipped what operating systems and network drives leave behind: {kinds}."


def as_text(name: str) -> str:
    """Return a name of the file system as text that any terminal, table or page may show; the rest is escaped.

    Escaped are bytes that are not UTF-8 (`\\xe9`), control characters (`\\x1b`), characters that turn the direction of writing,
    by which `gpj.exe` looks like `exe.jpg` (`\\u202e`), and the backslash itself (`\\\\`), so that no two names give one text.
    """
    return visible(os.fsencode(name).replace(b"\\", rb"\\").decode("utf-8", "backslashreplace"))


def as_name(text: str) -> str | None:
    """Return the name of the file system that `as_text` turns into `text`; None if there is no such name."""
    try:
        name = os.fsdecode(_ESCAPE.sub(_unescaped, text).encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return None
    return name if as_text(name) == text else None


def _unescaped(found: re.Match[str]) -> str:
    backslash, byte, character, line = found.groups()
    if byte:
        return bytes.fromhex(byte).decode("utf-8", "surrogateescape")
    return backslash or (chr(int(character, 16)) if character else _LINES[line])


def visible(text: str) -> str:
    """Escape control characters, marks of direction, and halves of surrogate pairs, much as Python would write them."""
    return _UNSEEN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    """Escape a character; one from 0x80 on gets four digits, since two stand for a byte that is not UTF-8."""
    code = ord(found[0])
    return found[0].encode("unicode_escape").decode("ascii") if code < 0x80 else f"\\u{code:04x}"


def harmless(parts: Iterable[str]) -> str:
    """Join parts of a path that come from inside a file, so that the result stays below any folder it is joined to."""
    return "/".join(r"\x2e\x2e" if part == ".." else as_text(part) for part in parts)

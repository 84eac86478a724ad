"""Knows by its name what operating systems and network drives leave among the files of their users."""

import re
from collections.abc import Mapping

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
    """Return what a file or folder of this name is; empty if it is nothing that a system leaves behind."""
    name = name.lower()
    return _NAMES.get(name) or next((kind for kind, pattern in _PATTERNS.items() if pattern.fullmatch(name)), "")


def skipped_line(counts: Mapping[str, int]) -> str:
    """Return the line that says what was skipped, and how often; empty if nothing was."""
    if not counts:
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))
    return f"Skipped what operating systems and network drives leave behind: {kinds}."

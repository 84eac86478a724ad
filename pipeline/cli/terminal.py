"""What may be written to a terminal: nothing in it that the terminal would obey."""


def printable(text: str) -> str:
    """Escape every character that is not printable, but for the ends of lines."""
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode("ascii") for one in text)

"""A part of the studies of a folder, for machines that share them without talking to each other."""

import hashlib
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts into which studies are divided by their key, so that machines share them without talking.

    Parameters
    ----------
    number
        From 1 to `of`.
    of
        How many parts there are.
    """

    number: int = 1
    of: int = 1

    def has(self, key: str) -> bool:
        """Say whether a study belongs to this part; each belongs to exactly one."""
        return int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:8]) % self.of == self.number - 1

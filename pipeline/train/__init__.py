"""From an index to a bundle."""

"""Says of a frame what speaks against using it."""

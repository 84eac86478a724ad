"""Checks whether a frame can be used."""

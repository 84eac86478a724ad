"""Configurations that ship with octray: values only."""

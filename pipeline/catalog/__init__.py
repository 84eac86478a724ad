"""The catalogue of public data sets, and their download."""

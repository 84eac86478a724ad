"""How good the predictions are, how calibrated, and where the operating point lies."""

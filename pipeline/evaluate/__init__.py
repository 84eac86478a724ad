"""Measures predictions: metrics with intervals, calibration, operating points, conformal bands, distance from training."""

"""HTTP service: a study in, predictions with heatmaps out."""

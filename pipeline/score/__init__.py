"""From a bundle and frames to predictions with heatmaps."""

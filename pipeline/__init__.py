"""From study files to calibrated predictions with heatmaps."""

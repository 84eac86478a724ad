"""Services that carry studies in and results out."""

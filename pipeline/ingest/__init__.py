"""From folders of studies to an index with labels, patients and splits."""

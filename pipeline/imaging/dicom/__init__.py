"""Reads DICOM files: from bytes to frames, each with its key, its grey levels and what its header says."""

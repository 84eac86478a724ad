"""Finds study files in folders, archives and DICOMDIRs, and reads their bytes."""

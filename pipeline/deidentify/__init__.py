"""De-identifies DICOM files by the profiles of PS3.15 Annex E; the only room that knows the identity of patients."""

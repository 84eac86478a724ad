"""Results as DICOM objects in the source's own study; `kinds` is light, the rest imports highdicom and is imported late."""

"""Worker processes under limits of memory and processor time; knows nothing of images."""

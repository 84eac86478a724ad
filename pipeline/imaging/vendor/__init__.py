"""Reads the files of OCT devices of Heidelberg, Topcon and Zeiss: from bytes to one frame for each B-scan."""

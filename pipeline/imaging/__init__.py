"""Files and bytes to frames: the one pixel path of training, batch and HTTP."""

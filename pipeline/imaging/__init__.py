"""Turns files and bytes into frames, and frames into the network's input: the one pixel path of training, folders and HTTP."""

"""Bad input: copies of files with faults made by a seed, what a worker says of one, and a target for atheris."""

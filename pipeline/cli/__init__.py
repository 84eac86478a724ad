"""The command line: the only room that sees all the others."""

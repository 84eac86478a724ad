"""Scores folders as durable work: list studies, claim, score, write; the next run continues one that ended early."""

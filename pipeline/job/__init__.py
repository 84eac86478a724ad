"""Scoring folders as durable work: studies are planned, claimed, scored and finished; whatever ends a run, the next goes on."""

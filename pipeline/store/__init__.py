"""The durable record of work: studies, who holds them, how often they were tried, and what came of them."""

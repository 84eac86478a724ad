"""The durable store: units of work, who holds them, how often they were tried, and what came of them."""

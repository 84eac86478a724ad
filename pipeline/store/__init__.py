"""The durable store: units of work, leases, attempts and results."""

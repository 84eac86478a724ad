"""Networks, their weights and the bundle that carries them to scoring."""

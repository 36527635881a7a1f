"""The registry of generators, and what every trained network shares: protocol, checkpoints, runs."""

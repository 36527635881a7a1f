"""What every trained network shares: a run with exact resume, checkpoints, meters, sharding, optimisers."""

"""Released checkpoints to model directories."""

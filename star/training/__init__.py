"""Training and fine-tuning of the next-scale transformer."""

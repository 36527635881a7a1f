"""The next-scale transformer: embed, blocks, head."""

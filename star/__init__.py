"""STAR: next-scale autoregression from a prompt to a picture, and the command line."""

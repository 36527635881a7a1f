"""Kernels that attention runs on, and the one dispatch between them."""

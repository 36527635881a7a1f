"""Styleformer (Park and Kim 2022)."""

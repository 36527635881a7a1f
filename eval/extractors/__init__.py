"""Frozen networks that turn pictures into features."""

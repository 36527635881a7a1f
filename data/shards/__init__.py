"""Shards of captioned pictures: packing, reading, checking, listing, near or far."""

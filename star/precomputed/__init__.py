"""Shards of codes and text features, made once, so that training needs neither network."""

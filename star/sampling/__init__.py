"""Drawing codes scale by scale."""

"""The benchmark: features, statistics, numbers, and reports that compare models."""

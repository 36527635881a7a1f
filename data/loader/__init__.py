"""From shards to batches: order, workers, weights of sources, aspect buckets, and a report of what was skipped."""

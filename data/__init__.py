"""Pictures and words before any network sees them: decoding, shards, the pipeline, text encoders."""

"""From folders and tables of captioned pictures to shards: every file is packed, or counted and named."""

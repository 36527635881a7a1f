"""From features to numbers with intervals."""

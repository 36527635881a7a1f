"""Pictures of one style redrawn in another, learnt from subjects that were drawn in both."""

"""Making checkpoints in the published layout."""

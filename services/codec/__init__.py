"""The codec stage: Mimi, between sound and RVQ codes."""

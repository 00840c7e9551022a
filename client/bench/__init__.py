"""`chroma-mesh bench`: drives a mesh as voice apps do and says how fast it is."""

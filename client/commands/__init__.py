"""The commands of `chroma-mesh`, a module each."""

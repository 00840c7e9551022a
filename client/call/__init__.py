"""A caller who speaks and listens at once, at the pace of people: `chroma-mesh call`."""

"""The speech stage: backbone and depth decoder turn the reasoner's steps into frames of codes."""

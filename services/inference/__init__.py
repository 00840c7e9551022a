"""Tensors of the autoregressive stages and the thread that runs them; knows no wire."""

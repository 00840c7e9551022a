"""What a frame costs: the engines beside the matrix products they contain and beside a plain transformers loop."""

"""A miniature of the model that holds a spoken conversation in a small domain, and how it was made."""

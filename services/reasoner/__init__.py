"""The reasoner stage: hears the user and writes the reply."""

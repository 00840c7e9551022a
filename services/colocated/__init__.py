"""The three stages that hold a model as servers of one process, which use one GPU without taking turns on it."""

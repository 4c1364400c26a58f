"""What is evaluated: each task makes a result of a model and a place of data."""

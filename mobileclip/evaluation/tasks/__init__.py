"""What is evaluated: each task makes a result of a model and a place of data.

A new task enters here, registered by its key. A number that several tasks compute belongs in `evaluation.metrics`.
"""

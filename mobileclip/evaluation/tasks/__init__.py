"""Evaluation tasks by key; each task computes features with a model and scores the features.

New tasks belong in this package and are registered by key. A metric that several tasks compute belongs in
`evaluation.metrics`.
"""

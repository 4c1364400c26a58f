"""Evaluation tasks by key: each computes features with a model, and scores them.

A new task enters here, registered by its key. A number that several tasks compute belongs in `evaluation.metrics`.
"""

from mobileclip.evaluation.tasks.linear_probe import split_folders as split_folders

"""Chooses samples of a reinforced data set by its stored embeddings: scores, filters, near duplicates.

The package scores shards, writes lists of uids from the scores, and finds near duplicates. It does not run models.
"""

"""Selects samples of a reinforced data set by their stored embeddings: scores, filters, near-duplicate removal.

The package scores shards, writes lists of uids from the scores, and finds near duplicates, without running models.
"""

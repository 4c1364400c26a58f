"""Chooses samples of a reinforced data set by its stored embeddings: scores, filters, near duplicates.

Scores of shards, lists of uids made from them, near duplicates. Whatever needs a model belongs elsewhere.
"""

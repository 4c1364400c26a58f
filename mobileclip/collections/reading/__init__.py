"""Files to embeddings: which files there are, which pictures are in them, and what became of each.

What can be done without the index at hand belongs here; what enters the index does not.
"""

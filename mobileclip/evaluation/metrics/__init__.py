"""From embeddings to numbers, and how sure these are.

Only what computes with tensors and numbers belongs here: no model, no file, no data set.
"""

"""Metrics of embeddings, and their confidence intervals.

Only what computes with tensors and numbers belongs here: no model, no file, no data set.
"""

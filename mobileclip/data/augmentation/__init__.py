"""Augmentations that are drawn once, stored as numbers and replayed bit for bit.

The drawn parameters are plain values that a sample can store. Reading and resizing images belong in `data.images`.
"""

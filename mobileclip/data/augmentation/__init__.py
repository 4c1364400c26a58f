"""Augmentations: drawn once, stored as numbers, and replayed to the bit.

What is drawn is a value that a sample can hold. Reading and resizing pictures belong in `data.images`.
"""

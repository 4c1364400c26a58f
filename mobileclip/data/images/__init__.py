"""Image files to pixels: formats, limits, decoding, and a model's preprocessing.

What concerns a picture alone belongs here; what changes its pixels at random, in `data.augmentation`.
"""

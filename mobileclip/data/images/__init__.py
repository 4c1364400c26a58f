"""Bytes to pixels: which files are images, what opening one may cost, and the preprocessing of a model.

What concerns a picture alone belongs here; what changes its pixels at random, in `data.augmentation`.
"""

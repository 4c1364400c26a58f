"""From image files to pixels: formats, limits, decoding and a model's preprocessing.

This package reads and preprocesses single images. Random changes of pixels belong in `data.augmentation`.
"""

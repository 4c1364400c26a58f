"""Samples: image, captions, augmentations and embeddings, in every supported layout.

A new layout of a sample's members belongs here; files of many samples belong in `data.shards`.
"""

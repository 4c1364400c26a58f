"""One sample: its image, captions, augmentations and embeddings, in every layout that is read.

A new layout of a sample's members enters here. Files of many samples belong in `data.shards`.
"""

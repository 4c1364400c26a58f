"""Shards to batches: the order of samples, decoding in worker processes, and resuming.

The storage of samples and shards does not belong here, but in `data.samples` and `data.shards`.
"""

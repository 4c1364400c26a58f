"""Shards to batches: the order of samples, decoding in worker processes, and resuming.

How a sample or a shard is stored does not belong here: it is for `data.samples` and `data.shards`.
"""

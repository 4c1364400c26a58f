"""Shards: tar files of samples, reading and writing them, and the card of a data set.

What the members of a sample mean is for `data.samples`, and in which order shards are read for `data.loading`.
"""

"""Shards (tar files of samples): reading, writing and the card of a data set.

The parsing of a sample's members belongs in `data.samples`, and the reading order of shards in `data.loading`.
"""

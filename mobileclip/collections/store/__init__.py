"""An index on disk: a manifest and segments of rows, written by one job at a time, while others read.

How rows are kept, joined and read belongs here; what they are made of does not.
"""

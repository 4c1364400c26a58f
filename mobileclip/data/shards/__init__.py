"""Many samples in one file: tar files, how they are written, and the card that says what a data set is.

What the members of a sample mean is for `data.samples`, and in which order shards are read for `data.loading`.
"""

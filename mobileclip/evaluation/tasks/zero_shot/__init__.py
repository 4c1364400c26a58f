"""Zero-shot classification and retrieval on a data set, with the published metrics.

What holds for any data set with labels or captions belongs here; a benchmark with rules of its own has
a place beside this room.
"""

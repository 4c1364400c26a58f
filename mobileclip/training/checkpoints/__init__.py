"""The state of a run as a file: what is in it, how it is written beside the training, and which are kept.

When a run writes one does not belong here, see `saving`.
"""

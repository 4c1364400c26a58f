"""Bytes to pixels: which files are images, what opening one may cost, and the preprocessing of a model."""

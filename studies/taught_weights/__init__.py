"""Weights for a published architecture that distinguish images, taught by a small model."""

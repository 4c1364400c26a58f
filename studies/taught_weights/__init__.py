"""Weights for a published architecture that tell pictures apart, taught by a small model."""

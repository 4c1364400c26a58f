"""Shards to batches: the order of samples, what is made of each, and where a run goes on."""

"""Zero-shot classification and retrieval on a data set, with the published metrics."""

"""From embeddings to numbers, and how sure these are."""

"""A model's embeddings of pictures and texts, encoded as fast as the machine can."""

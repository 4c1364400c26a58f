"""A second text tower for the packaged model `icons`, for many languages: its texts, training and results."""

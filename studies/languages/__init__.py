"""A second text tower for the packaged model of icons, in many languages: its texts, its training, its figures."""

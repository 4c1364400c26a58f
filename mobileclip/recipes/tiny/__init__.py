"""The small world that recipes are tried in: drawn scenes and shapes, small models, a person's first samples."""

"""A real image-text data set of emoji drawings, and real teachers for this data set."""

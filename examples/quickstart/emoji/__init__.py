"""A real image-text set of emoji drawings, and real teachers for it."""

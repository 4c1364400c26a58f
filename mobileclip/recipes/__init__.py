"""The published runs: their command lines, the choices that they share, and the small world that tries them."""

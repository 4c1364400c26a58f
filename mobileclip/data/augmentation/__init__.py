"""Numbers that change pixels: drawn once, stored, and replayed to the bit."""

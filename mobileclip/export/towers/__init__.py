"""A tower as an export holds it: what comes in, the encoder in the precision of its layers, what goes out.

What is written of it, and in which format, belongs in `targets`.
"""

"""Tokenizers: CLIP's byte pairs, and the tokenizers of `tokenizer.json` files.

This subpackage turns texts into ids; `encoders` has the text towers.
"""

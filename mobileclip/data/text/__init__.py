"""Tokenizers: CLIP's byte pairs, and any that a `tokenizer.json` describes.

This subpackage turns texts into ids; `encoders` has the text towers.
"""

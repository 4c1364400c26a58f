"""Tokenizers: CLIP's byte pairs, and the tokenizers of `tokenizer.json` files.

This subpackage converts texts to token ids; `mobileclip.encoders` has the text towers.
"""

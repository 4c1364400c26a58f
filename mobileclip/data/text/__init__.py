"""Tokenizers: CLIP's byte pairs, and any that a `tokenizer.json` describes.

What turns texts into ids belongs here; what embeds them, in `encoders`.
"""

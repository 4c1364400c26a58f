"""Words to ids: CLIP's byte-pair tokenizer, and any that a `tokenizer.json` describes.

What turns texts into ids belongs here; what embeds them, in `encoders`.
"""

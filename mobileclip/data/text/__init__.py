"""Words to ids: CLIP's byte-pair tokenizer, and any that a `tokenizer.json` describes."""

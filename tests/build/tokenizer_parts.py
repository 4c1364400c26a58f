"""Parts of a `tokenizer.json`."""

import base64
import struct


def mapping(units, texts):
    """A normalizer of SentencePiece, of the units of its table and the texts that they point to."""
    table = struct.pack(f"<{len(units)}I", *units)
    charsmap = base64.b64encode(struct.pack("<I", len(table)) + table + texts).decode()
    return {"type": "Precompiled", "precompiled_charsmap": charsmap}


def several(kind, *parts):
    return {"type": "Sequence", kind: list(parts)}


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}

"""Converts weights and tokenizers of other packages' models for models of this library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from mobileclip.data import Tokenizer
from mobileclip.data.text.tokenizer_file import LAST_SIGMA, PUNCTUATION, text_input_of as read_input
from mobileclip.encoders import DualEncoderSpec
from mobileclip.encoders.checkpoints import LoadedCheckpoint
from mobileclip.encoders.dual import MAX_LOGIT_SCALE
from mobileclip.inputs import TextInput

# Texts with capitals, no or too many words, spaces, punctuation, non-ASCII, mojibake, HTML, quotes and wide letters.
_PROBES = (
    "a photo of a Cat",
    "",
    "Two dogs, on the left! " * 40,
    "  it's  an_old\tcafé\n",
    "日本の猫",
    'A PHOTO OF 12 DOGS - "AT HOME"',
    "voilÃ  le cafÃ©, â€œvraimentâ€\x9d",
    "salt &amp;amp; pepper &lt;b&gt;",
    "the dog\u2019s \u201cbed\u201d, ｗｉｄｅ",
    "ΟΔΟΣ, ein Käfer, двa кота",
)
_LOWER: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"Regex": LAST_SIGMA}, "content": "ς"},
    {"type": "Lowercase"},
]
_SPACES: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Strip", "strip_left": True, "strip_right": True},
]
_CLEAN: Mapping[str, list[dict[str, Any]]] = {
    "": [],
    "lower case": _LOWER,
    # As in open_clip, which repairs mojibake and HTML entities before these cleanings.
    "whitespace": _SPACES,
    "lower": [*_SPACES, *_LOWER],
    "canonicalize": [
        {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
        {"type": "Replace", "pattern": {"Regex": PUNCTUATION}, "content": ""},
        *_LOWER,
        *_SPACES,
    ],
}


def stored_of(spec: DualEncoderSpec, weights: Mapping[str, Tensor], prefix_map: Mapping[str, str]) -> LoadedCheckpoint:
    """Return the weights of another package's model as `LoadedCheckpoint`, under this library's names.

    Args:
        spec: spec of the model.
        weights: tensors by their names in the package.
        prefix_map: this library's name prefix for each name prefix of the package. The function drops weights with
            other prefixes, except the logit scale.
    """
    scale = weights["logit_scale"].detach().float().reshape(1)
    factor = float(scale.exp())
    spec = attrs.evolve(spec, max_logit_scale=max(MAX_LOGIT_SCALE, factor * 1.001))
    tensors = {"logit_scale": scale}
    for name, tensor in weights.items():
        there = next((one for one in prefix_map if name.startswith(one)), None)
        if there is not None:
            tensors[prefix_map[there] + name.removeprefix(there)] = tensor.detach()
    with torch.device("meta"):
        wanted = spec.build().state_dict()
    # The package computes masks and positions; a newly built model contains them.
    if lacking := wanted.keys() - tensors.keys():
        built = spec.build().state_dict()
        tensors |= {name: built[name] for name in lacking}
    return LoadedCheckpoint(
        spec=spec, form="training", layout="mobileclip", tensors={name: tensors[name] for name in wanted}
    )


def text_input_of(
    content: str,
    *,
    context_length: int,
    vocab_size: int,
    pad_id: int | None = None,
    end_id: int | None = None,
    clean: str = "",
) -> TextInput:
    """Convert a `tokenizer.json`, and the package's additional processing of texts and ids, to a text input.

    Args:
        content: content of the file.
        context_length: ids per text.
        vocab_size: vocabulary size of the tower.
        pad_id: padding id after a text; None for the tokenizer's padding id.
        end_id: id at the end of every text, in place of the tokenizer's special tokens; None keeps the special tokens.
        clean: cleaning of texts before tokenization: `lower case`; `whitespace`, `lower` or `canonicalize` as in
            open_clip; or empty for no cleaning.

    Raises:
        ValueError: if `clean` is unknown, or the tokenizer has unsupported components.
    """
    if clean not in _CLEAN:
        raise ValueError(f"unknown text cleaning {clean!r}; expected one of {', '.join(filter(None, _CLEAN))}")
    parts = json.loads(content)
    first, own = _CLEAN[clean], parts.get("normalizer")
    if first:
        parts["normalizer"] = {"type": "Sequence", "normalizers": [*first, *([own] if own else [])]}
    if end_id is not None:
        token = next(one for one in parts["added_tokens"] if one["id"] == end_id)["content"]
        special = {token: {"id": token, "ids": [end_id], "tokens": [token]}}
        single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        parts["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": special,
        }
    parts["truncation"] = parts["padding"] = None
    if '"ByteLevel"' in json.dumps(parts.get("pre_tokenizer")):
        parts["model"]["unk_token"] = None  # every byte is known; CLIP's unknown token is the end token
    read = read_input(json.dumps(parts, ensure_ascii=False), context_length=context_length)
    if clean not in ("", "lower case"):
        assert read.tokenizer is not None, "it was read"
        read = attrs.evolve(read, tokenizer=attrs.evolve(read.tokenizer, repair=True))
    return attrs.evolve(read, vocab_size=vocab_size, pad_id=read.pad_id if pad_id is None else pad_id)


def checked(contract: TextInput, reference: Callable[[list[str]], Tensor]) -> TextInput:
    """Return a converted text input, after a check that its ids equal the ids of the package's tokenizer.

    Raises:
        ValueError: if the ids of a test text differ; the message shows the text.
    """
    ours = Tokenizer(contract)
    for text in _PROBES:
        if not torch.equal(ours([text]), reference([text])):
            raise ValueError(
                f"the converted tokenizer and the package's tokenizer return different ids for {text[:40]!r}; this "
                "tokenizer is not supported"
            )
    return contract

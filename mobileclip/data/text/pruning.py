"""A tokenizer without the tokens that given texts never use.

These texts have the same tokens as before: a tokenizer of byte pairs joins the best pair that is there, again and
again, one of pieces finds the most probable ones, one of words the longest, and each chooses alike without what it did
not choose. What a token of byte pairs is made of stays with it. Any other text has some tokens: bytes and letters stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import attrs

from mobileclip.data.text.tokenizer import END_OF_WORD, Tokenizer
from mobileclip.data.text.tokenizer_file import text_input_of
from mobileclip.inputs import MAX_TOKENIZER_BYTES, TextInput
from mobileclip.strict import parse_json

_NUM_COMPARED = 10_000
_BYTE = "<0x"
_CLIP_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "Replace", "pattern": {"String": END_OF_WORD}, "content": " "},
    ],
}


@attrs.frozen(kw_only=True)
class PrunedTokens:
    """A smaller text contract, and where its tokens come from.

    Args:
        text: the contract, with a tokenizer of its own.
        ids: the former id of every token, in the order of the new ones.
        num_other: texts that have other tokens than before: CLIP's tokenizer repairs broken letters, and a
            `tokenizer.json` cannot.
    """

    text: TextInput
    ids: tuple[int, ...]
    num_other: int


def prune_tokens(texts: Iterable[str], text: TextInput) -> PrunedTokens:
    """Return a text contract without the tokens that texts never use.

    Bytes, letters and special tokens stay, so that every other text has tokens too.

    Args:
        texts: read once.
        text: the contract; CLIP's byte pairs, or any `tokenizer.json`.

    Raises:
        ValueError: if there is no text, or the tokenizer gives a text other tokens without those that it has none of.
    """
    own = Tokenizer(text)
    content = own.to_json()
    whole = text_input_of(content, context_length=text.context_length)
    as_file = Tokenizer(whole)
    used: set[int] = set()
    compared: list[tuple[str, list[int]]] = []
    num_texts = num_other = 0
    for one in texts:
        before, now = own.encode(one), as_file.encode(one)
        used.update(before, now)
        num_texts, num_other = num_texts + 1, num_other + (before != now)
        if len(compared) < _NUM_COMPARED:
            compared.append((one, now))
    if not num_texts:
        raise ValueError("there is no text, and a vocabulary is pruned to what texts use; give some")
    parsed = parse_json(content, max_characters=MAX_TOKENIZER_BYTES)
    if text.tokenizer is None:
        parsed["decoder"] = _CLIP_DECODER
    around = {text.pad_id, text.end_id, *([] if text.start_id is None else [text.start_id])}
    ids = _pruned(parsed, used | around)
    pruned = text_input_of(json.dumps(parsed, ensure_ascii=False), context_length=text.context_length)
    number = {old: new for new, old in enumerate(ids)}
    pruned = attrs.evolve(pruned, pad_id=number[text.pad_id])
    smaller = Tokenizer(pruned)
    for one, now in compared:
        if smaller.encode(one) != [number[index] for index in now]:
            raise ValueError(f"without the tokens that no text has, {one[:80]!r} has others; keep the whole vocabulary")
    return PrunedTokens(text=pruned, ids=tuple(ids), num_other=num_other)


def _pruned(parsed: dict[str, Any], used: set[int]) -> list[int]:
    """Leave tokens out of a parsed `tokenizer.json`, and return the former ids of those that stay."""
    model, added = parsed["model"], parsed.get("added_tokens") or []
    listed = isinstance(model["vocab"], list)
    numbers = {entry[0]: place for place, entry in enumerate(model["vocab"])} if listed else dict(model["vocab"])
    tokens = {number: token for token, number in numbers.items()}
    kept = {tokens[number] for number in used | _named(parsed) if number in tokens}
    kept |= {entry["content"] for entry in added} & numbers.keys()
    kept |= {model["unk_token"]} & numbers.keys() if model.get("unk_token") else set()
    keep = {"BPE": _keep_pairs, "Unigram": _keep_pieces}.get(model.get("type", ""), _keep_letters)
    keep(model, numbers, kept)
    ids = sorted(numbers[token] for token in kept)
    ids += sorted(entry["id"] for entry in added if entry["content"] not in numbers)
    number = {old: new for new, old in enumerate(ids)}
    if listed:
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in kept]
        model["unk_id"] = None if model.get("unk_id") is None else number[model["unk_id"]]
    else:
        model["vocab"] = {tokens[old]: new for old, new in number.items() if old in tokens}
    _renumber(parsed, number)
    return ids


def _keep_pairs(model: dict[str, Any], numbers: dict[str, int], kept: set[str]) -> None:
    """Keep bytes, and what the tokens that are kept are made of."""
    prefix = len(model.get("continuing_subword_prefix") or "")
    merges = [tuple(one.split(" ")) if isinstance(one, str) else tuple(one) for one in model["merges"]]
    parents: dict[str, list[str]] = {}
    for first, second in merges:
        parents.setdefault(first + second[prefix:], []).extend((first, second))
    kept |= numbers.keys() - parents.keys()
    waiting = list(kept)
    for token in waiting:
        new = {*parents.get(token, ())} - kept
        kept |= new
        waiting += new
    model["merges"] = [[first, second] for first, second in merges if {first, second, first + second[prefix:]} <= kept]


def _keep_pieces(model: dict[str, Any], numbers: dict[str, int], kept: set[str]) -> None:
    """Keep letters, bytes, what stands for the unknown, and the least probable piece, which the unknown follows."""
    kept |= {piece for piece in numbers if len(piece) == 1 or piece.startswith(_BYTE)}
    kept.add(min(model["vocab"], key=lambda entry: entry[1])[0])
    if model.get("unk_id") is not None:
        kept.add(model["vocab"][model["unk_id"]][0])


def _keep_letters(model: dict[str, Any], numbers: dict[str, int], kept: set[str]) -> None:
    """Keep letters, at the beginning of words and within them."""
    prefix = model.get("continuing_subword_prefix") or ""
    kept |= {token for token in numbers if len(token.removeprefix(prefix)) == 1 or len(token) == 1}


def _places(parsed: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield where an id stands beside the model and the added tokens: a list or an object, and the place in it."""
    waiting: list[Any] = [parsed.get("post_processor")]
    for part in waiting:
        if not isinstance(part, dict):
            continue
        waiting += part.get("processors") or []
        yield from ((part[name], 1) for name in ("sep", "cls") if isinstance(part.get(name), list))
        special = part.get("special_tokens")
        for entry in special.values() if isinstance(special, dict) else ():
            yield from ((entry["ids"], place) for place in range(len(entry["ids"])))
    if isinstance(parsed.get("padding"), dict):
        yield parsed["padding"], "pad_id"


def _named(parsed: dict[str, Any]) -> set[int]:
    return {holder[place] for holder, place in _places(parsed)}


def _renumber(parsed: dict[str, Any], number: dict[int, int]) -> None:
    for holder, place in chain(_places(parsed), ((entry, "id") for entry in parsed.get("added_tokens") or [])):
        holder[place] = number[holder[place]]

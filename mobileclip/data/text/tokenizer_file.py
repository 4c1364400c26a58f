"""Texts to ids by the `tokenizer.json` of Hugging Face `tokenizers`: of BERT's, T5's, sentencepiece's or GPT's kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import attrs

from mobileclip.data.text.cleaning import repaired
from mobileclip.data.text.tokenizer_parts import check_parts
from mobileclip.inputs import MAX_TOKENIZER_BYTES, TextInput, TokenizerFile, tokenizer_sha256
from mobileclip.machine import raise_machine_fault
from mobileclip.storage import AnyPath, printable, read_bytes, without_secrets
from mobileclip.strict import parse_json

if TYPE_CHECKING:
    import tokenizers

_PADDING = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
_PROBE, _ODD_PROBE = "a photo of 2 cats", "\u5b57 \ufdfa \U0001f9ff \U0010fffd"
# Normalising may make a text some thousand times as long, and what is cut off anyway need not be read.
_MOST_CHARACTERS, _CHARACTERS_PER_ID = 1 << 16, 8
_MAX_CONTAINERS = 600_000
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MAX_REASON = 300


@attrs.frozen(kw_only=True)
class SpecialIds:
    """The ids of a tokenizer's start, end and padding tokens.

    Args:
        start: in front; None for nothing.
        end: behind.
        pad: behind the end.
        largest: of all ids.
    """

    start: int | None
    end: int
    pad: int
    largest: int


@attrs.frozen(eq=False)
class FileTokenizer:
    """The ids of a contract with a tokenizer of its own: those that `tokenizers` gives, cut and padded to the contract.

    Texts are cut and padded on the right, whatever the file says. Texts are cleaned as the file says, and repaired in
    front of it where the contract says so.

    Args:
        text_input: the contract.
        backend: what the file describes; it neither cuts nor pads.
    """

    text_input: TextInput
    backend: tokenizers.Tokenizer

    def row(self, text: str) -> list[int]:
        """Return the whole row of ids of a text: `start, ids, end, padding`, as far as there is a start token.

        Raises:
            ValueError: if the tokenizer fails.
        """
        contract = self.text_input
        most = max(_MOST_CHARACTERS, _CHARACTERS_PER_ID * contract.context_length)
        start = [] if contract.start_id is None else [contract.start_id]
        room = contract.context_length - len(start) - 1
        ids = self.encode(text[:most])[:room]
        return [*start, *ids, contract.end_id] + [contract.pad_id] * (room - len(ids))

    def encode(self, text: str) -> list[int]:
        """Return all ids of a text, without the special tokens around it.

        Raises:
            ValueError: if the tokenizer fails.
        """
        file = self.text_input.tokenizer
        text = repaired(text) if file is not None and file.repair else text
        with _telling("the tokenizer fails"):
            ids: list[int] = self.backend.encode(_encodable(text), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens.

        Raises:
            ValueError: if the tokenizer fails.
        """
        with _telling("the tokenizer fails"):
            text: str = self.backend.decode(list(ids))
        return text

    def to_json(self) -> str:
        """Return a `tokenizer.json` whose `encode(text).ids` is the whole row."""
        contract = self.text_input
        whole = type(self.backend).from_str(self.backend.to_str())
        whole.enable_truncation(contract.context_length)
        pad_token = whole.id_to_token(contract.pad_id) or ""
        whole.enable_padding(length=contract.context_length, pad_id=contract.pad_id, pad_token=pad_token)
        text: str = whole.to_str()
        return text


def read_text_input(path: AnyPath, *, context_length: int = 77) -> TextInput:
    """Return the text contract of a model that is trained with the tokenizer in a `tokenizer.json`.

    Start, end and padding are the tokenizer's own; one without padding is padded with its end token, as GPT-2 is.

    Args:
        path: the file, of up to 32 MiB; paths and URLs.
        context_length: number of ids per text, start and end included; longer texts are cut in front of the end.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no tokenizer, holds what might never end, or puts no end token behind a text, at which
            towers could pool.
    """
    try:
        content = read_bytes(path, limit=MAX_TOKENIZER_BYTES).decode("utf-8")
        return text_input_of(content, context_length=context_length)
    except ValueError as error:
        raise ValueError(f"{without_secrets(path)} is no tokenizer.json that can be used: {error}") from None


def text_input_of(content: str, *, context_length: int) -> TextInput:
    """Return the text contract of the text of a `tokenizer.json`, as `read_text_input` does of its file.

    Raises:
        ValueError: see `read_text_input`.
    """
    _, ids = _opened(content)
    return TextInput(
        context_length=context_length,
        vocab_size=ids.largest + 1,
        pad_id=ids.pad,
        tokenizer=TokenizerFile(sha256=tokenizer_sha256(content), start_id=ids.start, end_id=ids.end, content=content),
    )


def check_tokenizer(content: str) -> None:
    """Raise unless the text of a `tokenizer.json` can be used for texts of a tower.

    Raises:
        ValueError: see `read_text_input`.
    """
    _opened(content)


def file_tokenizer(text_input: TextInput) -> FileTokenizer:
    """Return the tokenizer of a contract that has one of its own.

    Raises:
        ValueError: if the contract names a file without its text, the file is no tokenizer that can be used, or puts
            other ids around a text than the contract says.
    """
    file = text_input.tokenizer
    assert file is not None, "CLIP's own is another class"
    if file.content is None:
        raise ValueError(
            f"the text contract names the tokenizer {file.sha256[:12]}, whose text is not here; read it with "
            "mobileclip.data.read_text_input, or take the contract of a model that is loaded from its checkpoint"
        )
    backend, ids = _opened(file.content)
    if (ids.start, ids.end) != (file.start_id, file.end_id) or ids.largest >= text_input.vocab_size:
        raise ValueError(
            f"the tokenizer has the start token {ids.start}, the end token {ids.end} and ids up to {ids.largest}, and "
            f"the contract says {file.start_id}, {file.end_id} and {text_input.vocab_size} ids"
        )
    return FileTokenizer(text_input, backend)


@lru_cache(maxsize=8)
def _opened(content: str) -> tuple[tokenizers.Tokenizer, SpecialIds]:
    """Return what a `tokenizer.json` describes, which neither cuts nor pads, and what it puts around a text."""
    from tokenizers import Tokenizer

    parsed = _parsed(content)
    with _telling("it cannot be built"):
        backend = Tokenizer.from_str(content)
    backend.no_truncation()
    backend.no_padding()
    return backend, _special_ids(backend, parsed)


def _parsed(content: str) -> dict[str, Any]:
    """Return what a `tokenizer.json` holds, within bounds."""
    # Each becomes an object of Python, which takes some twenty times the memory and time of its text.
    num_containers = content.count("[") + content.count("{")
    if num_containers > _MAX_CONTAINERS:
        raise ValueError(f"it has {num_containers:,} lists and objects, and up to {_MAX_CONTAINERS:,} are read")
    parsed = parse_json(content, max_characters=MAX_TOKENIZER_BYTES)
    check_parts(parsed)
    checked: dict[str, Any] = parsed
    return checked


def _special_ids(backend: tokenizers.Tokenizer, parsed: dict[str, Any]) -> SpecialIds:
    with _telling("it cannot make ids"):
        inner = backend.encode(_PROBE, add_special_tokens=False).ids
        whole = backend.encode(_PROBE).ids
        backend.encode(_ODD_PROBE)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        special = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
    around = len(whole) - len(inner)
    if not inner or not 1 <= around <= 2 or whole[around - 1 : -1] != inner:
        raise ValueError(
            f"of {_PROBE!r} it makes {inner[:8]}, and {whole[:10]} with special tokens; expected one token "
            "behind a text, at which towers pool, and none or one in front: give it a TemplateProcessing such as "
            "'<s> $A </s>'"
        )
    end = whole[-1]
    model = parsed["model"]
    unknown = model.get("unk_id", vocabulary.get(model.get("unk_token")))
    if end not in special or end == unknown:
        raise ValueError(
            f"its end token {end} stands for {'what is unknown' if end == unknown else 'words'} too, so that towers "
            "would pool elsewhere; give it an end token of its own, special and not the unknown one"
        )
    padding = parsed.get("padding")
    named = padding.get("pad_id") if isinstance(padding, dict) else None
    if type(named) is not int:
        named = next((vocabulary[token] for token in _PADDING if token in vocabulary), end)
    return SpecialIds(start=whole[0] if around == 2 else None, end=end, pad=named, largest=max(vocabulary.values()))


def _encodable(text: str) -> str:
    """Return a text without halves of characters, which no encoding holds."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Turn whatever the library raises into a ValueError; its panics are no `Exception`.

    Raises:
        ValueError: in place of any of them.
    """
    try:
        yield
    except BaseException as error:
        raise_machine_fault(error)
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{what}: {printable(str(error)[:_MAX_REASON])}") from None
        raise

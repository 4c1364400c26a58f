"""Texts cleaned as CLIP does, and the tokenizer.json of Hugging Face tokenizers: read within bounds, used, and trained.

What tokenizers would hang on, or use up the memory for, is refused; all else is left to the library, whose errors and
panics are told as errors. Measured with 0.22, on files of up to 32 MiB that are complete otherwise:

- it hangs on patterns that try over and over, on hundreds of thousands of parts, of added tokens and of long words, on
  words of any length in a WordPiece model, on tokens of a Unigram model that are thousands of letters long, on long
  prefixes of byte pairs;
- it takes gigabytes, and ends the process, for texts that grow: replacements longer than what they replace, bytes as
  letters over and over, long texts in front, tables that map to long texts, added tokens of megabytes; and for a table
  of a normaliser that claims more bytes than it has.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import attrs

from mobileclip.inputs import MAX_TOKENIZER_BYTES, TextInput, TokenizerFile, tokenizer_sha256
from mobileclip.machine import raise_machine_fault
from mobileclip.storage import AnyPath, printable, read_bytes, without_secrets
from mobileclip.strict import parse_json

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import Tokenizer
    from tokenizers.trainers import Trainer


# Where repairing can change something. An entity needs a name or a number behind its ampersand. Mojibake is two odd
# characters side by side: an accented letter, dash or quote with ASCII on both sides is none (all but the few letters
# that are suspect alone, which are left out here), nor are runs in scripts that no Western encoding holds.
_ENTITY = re.compile(r"&[#0-9A-Za-z]")
_ALONE = "ÀÁÄ-ÏÑ-ÖØ-Ýß-ïñ-öø-ýÿ–—‘’“”"
_RUNS = "А-яぁ-んァ-ヴー、。一-\u9fff가-힣\U0001f300-\U0001faff"
_SUSPECT = re.compile(f"[^ -~{_ALONE}{_RUNS}]|(?<![ -~])(?<!^)[{_ALONE}]|[{_ALONE}](?![ -~]|$)")
_STRAIGHT_QUOTES = (("‘", "'"), ("’", "'"), ("“", '"'), ("”", '"'))


def clean(text: str) -> str:
    """Return a text as CLIP's byte pairs take it: repaired, in lower case."""
    return repaired(text).lower()


def repaired(text: str) -> str:
    """Return the text repaired by ftfy, with HTML entities unescaped (twice).

    Repairing costs more than all the rest, so it is done only where it could change something.
    """
    if not text.isprintable() or ("&" in text and _ENTITY.search(text)):
        return _repair(text)
    if not text.isascii():
        if _SUSPECT.search(text):
            return _repair(text)
        for curly, straight in _STRAIGHT_QUOTES:
            text = text.replace(curly, straight)
    return text


def _repair(text: str) -> str:
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text)))


START, END = "<start_of_text>", "<end_of_text>"

# The published pattern of CLIP ignores case in the property classes too, and by that loses the one mark (combining iota
# below, U+0345) whose upper case is a letter: it is neither a letter nor anything else, and is dropped.
SPLIT = START + "|" + END + r"|(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
APOSTROPHES, QUOTES, LAST_SIGMA = r"[\x{2bc}\x{2018}-\x{201b}]", r"[\x{201c}-\x{201f}]", r"(?<=\p{L})Σ(?!\p{L})"

PUNCTUATION = r"[!-/:-@\[-`{-~]"

PATTERNS = frozenset(
    {
        PUNCTUATION,
        # Of CLIP's byte pairs as they are written here.
        SPLIT,
        APOSTROPHES,
        QUOTES,
        LAST_SIGMA,
        r"\s+",
        r"\s{2,}",
        r" {2,}",
        r"\s{2,}|[\n\r\t]",
        # GPT-2, CLIP, GPT-4 and Llama 3, Qwen 2.
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        *(
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            for digits in (r"\p{N}{1,3}", r"\p{N}")
        ),
    }
)
"""Regular expressions of published tokenizers; each takes one character at least, and time in proportion to a text."""

_MAX_TOKENS, _MAX_CHARACTERS, _MAX_ADDED = 1 << 19, 1 << 23, 1 << 14
_MAX_TEXT, _MAX_WORD, _MAX_PARTS, _LONGEST_MAPPED = 512, 1000, 16, 64
# What cannot make a text longer; everything else stands once in a place.
_REPEATABLE = ("Replace", "Sequence", "Split", "Strip", "CharDelimiterSplit")
_CHARSMAP = "precompiled_charsmap"
_SHOWN = 60


def check_parts(value: Any) -> None:
    """Raise if a parsed `tokenizer.json` holds what the library hangs on, or takes all memory for.

    Args:
        value: from `parse_json`.

    Raises:
        ValueError: naming the part and what is wrong with it.
    """
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, dict):
        raise ValueError("it holds no model")
    _check_model(model)
    rest = [*value.items(), *model.items()]
    for name, part in (one for one in rest if one[0] not in ("model", "vocab", "merges")):
        longest = max((len(one) for one in _values(part) if isinstance(one, str)), default=0)
        if longest > _MAX_TEXT:
            raise ValueError(f"{printable(name[:_SHOWN])} holds a text of {longest:,} characters, beyond {_MAX_TEXT}")
    num_added = len(added) if isinstance(added := value.get("added_tokens"), list) else 0
    if num_added > _MAX_ADDED:
        raise ValueError(f"added_tokens holds {num_added:,} tokens, and up to {_MAX_ADDED:,} are read")
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        _check_place(value.get(name), name)


def _check_model(model: dict[str, Any]) -> None:
    """Check the sizes of a model, and that it gives a text the same ids each time."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        vocabulary = [entry[0] for entry in vocabulary if isinstance(entry, list) and entry]
    tokens = [token for token in vocabulary or () if isinstance(token, str)]
    longest, total = max(map(len, tokens), default=0), sum(map(len, tokens))
    if len(tokens) > _MAX_TOKENS or longest > _MAX_TEXT or total > _MAX_CHARACTERS:
        raise ValueError(
            f"its vocabulary has {len(tokens):,} tokens of up to {longest:,} characters, {total:,} in all; up to "
            f"{_MAX_TOKENS:,} of {_MAX_TEXT} are read, {_MAX_CHARACTERS:,} in all"
        )
    most = model.get("max_input_chars_per_word")
    if isinstance(most, int) and most > _MAX_WORD:
        raise ValueError(f"max_input_chars_per_word is {most}, and at most {_MAX_WORD:,} are read")
    if model.get("dropout"):
        raise ValueError("dropout is not 0: a text would have other ids each time; set it to null")


def _check_place(part: Any, name: str) -> None:
    """Check the parts of one place, and those inside: how many there are, and that no text grows without end."""
    kinds: Counter[str] = Counter()
    for one in _values(part):
        if not isinstance(one, dict):
            continue
        if one.keys() <= {"Regex", "String"}:
            pattern = one.get("Regex")
            if isinstance(pattern, str) and pattern not in PATTERNS:
                raise ValueError(
                    f"{name} has the regular expression {_shown(pattern)}, which is of none of the published "
                    "tokenizers that are known here: it might never end. Split by String, ByteLevel, Punctuation, "
                    "Digits or Whitespace"
                )
            continue
        kinds[str(one.get("type"))] += 1
        pattern, content = one.get("pattern"), one.get("content")
        replaced = pattern.get("String", "x") if isinstance(pattern, dict) else None
        if isinstance(replaced, str) and isinstance(content, str) and len(content) > len(replaced):
            raise ValueError(f"{name} Replace puts in more than it takes out, so that texts could grow without end")
        if isinstance(one.get(_CHARSMAP), str):
            _check_charsmap(one[_CHARSMAP], name)
    if kinds.total() > _MAX_PARTS:
        raise ValueError(f"{name} has {kinds.total()} parts, and up to {_MAX_PARTS} are read")
    twice = next((kind for kind, count in kinds.items() if count > 1 and kind not in _REPEATABLE), None)
    if twice is not None:
        raise ValueError(f"{name} has {_shown(twice)} more than once")


def _check_charsmap(value: str, name: str) -> None:
    """Check the table of a sentencepiece normaliser: it has the bytes that it claims, and its texts are short."""
    try:
        data = base64.b64decode(value)
    except (binascii.Error, ValueError):
        return  # the library says so
    num_bytes = int.from_bytes(data[:4], "little")
    longest = max(map(len, data[4 + num_bytes :].split(b"\0")))
    if num_bytes > len(data) - 4 or longest > _LONGEST_MAPPED:
        raise ValueError(
            f"{name} has a table of sentencepiece that claims {num_bytes:,} of its {len(data):,} bytes, and maps to "
            f"texts of up to {longest:,} bytes; up to {_LONGEST_MAPPED} are read"
        )


def _values(value: Any) -> Iterator[Any]:
    """Yield everything within a value, itself included, but the table of a normaliser."""
    waiting = [value]
    for one in waiting:
        yield one
        if isinstance(one, dict):
            waiting += (item for key, item in one.items() if key != _CHARSMAP)
        elif isinstance(one, list):
            waiting += one


def _shown(value: Any) -> str:
    return printable(repr(value)[:_SHOWN])


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


TokenizerKind = Literal["unigram", "bpe"]
KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
_UNKNOWN, _TRAINED_PADDING, _TRAINED_END = "<unk>", "<pad>", "</s>"
_SPECIAL = [_TRAINED_PADDING, _TRAINED_END, _UNKNOWN]
_LEAST = 300
_LONGEST_PIECE = 16


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, kind: TokenizerKind = "bpe", lowercase: bool = True
) -> str:
    """Return the text of a `tokenizer.json` that is trained on texts; `mobileclip.data.read_text_input` reads its file.

    Texts are normalised (NFKC), lower-cased, and cut into words at spaces. Every text gets an end token.

    Args:
        texts: read once, in memory by the trainer.
        vocab_size: number of tokens at most, special ones included; fewer where the texts do not give as many.
        kind: `bpe`, the most frequent pairs of bytes, which has no unknown character and is the same every time; or
            `unigram`, the most probable subwords, as sentencepiece has it, a few of which differ from time to time.
        lowercase: whether capitals are small letters.

    Raises:
        ValueError: if there are too few tokens, the kind is unknown, or the texts give no tokenizer that can be used.

    Source: Kudo, "Subword Regularization", 2018; Sennrich et al., "Neural Machine Translation of Rare Words with
        Subword Units", 2016; both as Hugging Face `tokenizers` has them.

    Examples:
        >>> content = train_tokenizer(["ein rotes Herz", "une étoile rouge"] * 10, vocab_size=300)
        >>> mobileclip.storage.write_text("tokenizer.json", content)
        >>> mobileclip.data.read_text_input("tokenizer.json", context_length=16).context_length
        16
    """
    from tokenizers import normalizers, processors

    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if vocab_size < _LEAST:
        raise ValueError(f"vocab_size is {vocab_size}, and a tokenizer has {_LEAST} tokens at least")
    backend, trainer = _of_kind(kind, vocab_size)
    steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
    backend.normalizer = normalizers.Sequence(steps)
    backend.train_from_iterator(texts, trainer=trainer)
    end = backend.token_to_id(_TRAINED_END)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {_TRAINED_END}", special_tokens=[(_TRAINED_END, end)]
    )
    backend.enable_padding(pad_id=backend.token_to_id(_TRAINED_PADDING), pad_token=_TRAINED_PADDING)
    content: str = backend.to_str()
    check_tokenizer(content)
    return content


def _of_kind(kind: TokenizerKind, vocab_size: int) -> tuple[Tokenizer, Trainer]:
    """Return an untrained tokenizer and what trains it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    choices: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": _SPECIAL, "show_progress": False}
    if kind == "bpe":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        return backend, trainers.BpeTrainer(**choices, initial_alphabet=alphabet, max_token_length=_LONGEST_PIECE)
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend, trainers.UnigramTrainer(**choices, unk_token=_UNKNOWN, max_piece_length=_LONGEST_PIECE)

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
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from mobileclip.inputs import MAX_TOKENIZER_BYTES, TextInput, TokenizerFile, tokenizer_sha256
from mobileclip.machine import raise_machine_fault
from mobileclip.storage import AnyPath, printable, read_bytes, without_secrets
from mobileclip.strict import parse_json

if TYPE_CHECKING:
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
# Each becomes an object of Python, which takes some twenty times the memory and time of its text.
_MAX_CONTAINERS = 600_000
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
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        vocabulary = [entry[0] for entry in vocabulary if isinstance(entry, list) and entry]
    tokens = [token for token in vocabulary or () if isinstance(token, str)]
    added, longest_word = value.get("added_tokens"), model.get("max_input_chars_per_word")
    _check_count("tokens in its vocabulary", len(tokens), _MAX_TOKENS)
    _check_count("characters in a token of its vocabulary", max(map(len, tokens), default=0), _MAX_TEXT)
    _check_count("characters in its vocabulary", sum(map(len, tokens)), _MAX_CHARACTERS)
    _check_count("added_tokens", len(added) if isinstance(added, list) else 0, _MAX_ADDED)
    _check_count("max_input_chars_per_word", longest_word if isinstance(longest_word, int) else 0, _MAX_WORD)
    if model.get("dropout"):
        raise ValueError("dropout is not 0: a text would have other ids each time; set it to null")
    for name, part in [*value.items(), *model.items()]:
        if name not in ("model", "vocab", "merges"):
            longest = max((len(one) for one in _values(part) if isinstance(one, str)), default=0)
            _check_count(f"characters in a text of {printable(name[:_SHOWN])}", longest, _MAX_TEXT)
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        _check_place(value.get(name), name)


def _check_count(what: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"{what}: {count:,}, and at most {most:,} are read")


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
    _check_count(f"parts of {name}", kinds.total(), _MAX_PARTS)
    for kind, count in kinds.items():
        if count > 1 and kind not in _REPEATABLE:
            raise ValueError(f"{name} has {_shown(kind)} more than once")


def _check_charsmap(value: str, name: str) -> None:
    """Check the table of a sentencepiece normaliser: it has the bytes that it claims, and its texts are short."""
    with suppress(binascii.Error):  # of which the library tells
        data = base64.b64decode(value.encode(errors="replace"))
        num_bytes = int.from_bytes(data[:4], "little")
        _check_count(f"bytes that the table of {name} claims", num_bytes, len(data) - 4)
        longest = max(map(len, data[4 + num_bytes :].split(b"\0")))
        _check_count(f"bytes in a text of the table of {name}", longest, _LONGEST_MAPPED)


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
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MAX_REASON = 300


class FileTokenizer:
    """What a `tokenizer.json` describes; it neither cuts nor pads, whatever the file says.

    Args:
        content: the text of the file.

    Raises:
        ValueError: see `read_text_input`.
    """

    def __init__(self, content: str) -> None:
        from tokenizers import Tokenizer

        _check_count("lists and objects", content.count("[") + content.count("{"), _MAX_CONTAINERS)
        parsed = parse_json(content, max_characters=MAX_TOKENIZER_BYTES)
        check_parts(parsed)
        with _telling("it cannot be used"):
            self.backend = backend = Tokenizer.from_str(content)
            backend.no_truncation()
            backend.no_padding()
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
        self.start, self.end = whole[0] if around == 2 else None, whole[-1]
        self.largest = max(vocabulary.values())
        model = parsed["model"]
        unknown = model.get("unk_id", vocabulary.get(model.get("unk_token")))
        if self.end not in special or self.end == unknown:
            raise ValueError(
                f"its end token {self.end} stands for {'what is unknown' if self.end == unknown else 'words'} too, so "
                "that towers would pool elsewhere; give it an end token of its own, special and not the unknown one"
            )
        padding = parsed.get("padding")
        pad = padding.get("pad_id") if isinstance(padding, dict) else None
        named = next((vocabulary[token] for token in _PADDING if token in vocabulary), self.end)
        self.pad: int = pad if type(pad) is int else named

    def encode(self, text: str) -> list[int]:
        """Return all ids of a text, without the special tokens around it.

        Raises:
            ValueError: if the tokenizer fails.
        """
        if not text.isascii() and _SURROGATE.search(text):  # halves of characters, which no encoding holds
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        with _telling("the tokenizer fails"):
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens.

        Raises:
            ValueError: if the tokenizer fails.
        """
        with _telling("the tokenizer fails"):
            text: str = self.backend.decode(list(ids))
        return text


opened = lru_cache(maxsize=8)(FileTokenizer)
"""Return the tokenizer of the text of a file."""


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
    own = opened(content)
    file = TokenizerFile(sha256=tokenizer_sha256(content), start_id=own.start, end_id=own.end, content=content)
    return TextInput(context_length=context_length, vocab_size=own.largest + 1, pad_id=own.pad, tokenizer=file)


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
    own = opened(file.content)
    if (own.start, own.end) != (file.start_id, file.end_id) or own.largest >= text_input.vocab_size:
        raise ValueError(
            f"the tokenizer has the start token {own.start}, the end token {own.end} and ids up to {own.largest}, and "
            f"the contract says {file.start_id}, {file.end_id} and {text_input.vocab_size} ids"
        )
    return own


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
    opened(content)
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

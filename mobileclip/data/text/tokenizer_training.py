"""A tokenizer of one's own, trained on texts: for languages and vocabularies that CLIP's has no words for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

from mobileclip.data.text.tokenizer_file import check_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.trainers import Trainer

TokenizerKind = Literal["unigram", "bpe"]
KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
UNKNOWN, PADDING, END = "<unk>", "<pad>", "</s>"
_SPECIAL = [PADDING, END, UNKNOWN]
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
    end = backend.token_to_id(END)
    backend.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    backend.enable_padding(pad_id=backend.token_to_id(PADDING), pad_token=PADDING)
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
    return backend, trainers.UnigramTrainer(**choices, unk_token=UNKNOWN, max_piece_length=_LONGEST_PIECE)

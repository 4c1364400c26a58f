"""The spec of distilling a text tower from texts alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
from attrs import validators

from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.sources import TextColumns, TextPair, read_text_pairs
from mobileclip.encoders import MCtSpec, TextEncoderSpec, TextTransformerSpec
from mobileclip.encoders.text import POOL_NAMES, PoolName
from mobileclip.hardware.devices import AUTO
from mobileclip.inputs import TextInput
from mobileclip.losses import TextDistillationLossSpec
from mobileclip.strict import strict
from mobileclip.training import AdamWSpec, CosineSchedule, TrainingSpec

Kind = Literal["transformer", "mct", "teacher"]
_OF_STUDENTS = ("width", "num_heads", "depth", "pool")
_LANGUAGE = re.compile(r"([A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*)=(.+)")
_HEAD = 64


def _training() -> TrainingSpec:
    return TrainingSpec(
        loss=TextDistillationLossSpec(relation_weight=10.0),
        schedule=CosineSchedule(total_steps=20_000),
        optimizer=AdamWSpec(weight_decay=0.1),
        max_gradient_norm=1.0,
        ema_decay=0.999,
    )


@attrs.frozen(kw_only=True, field_transformer=strict)
class DistilSpec:
    """The choices of a text tower that learns another one's embeddings from texts alone.

    Args:
        model: the teacher: a name, a checkpoint, a folder with one or with an export, `hf-hub:OWNER/NAME`, NAME=FILE,
            `open_clip:MODEL/TAG`, or `transformers:OWNER/NAME` or a folder behind `transformers:`. Needed until its
            embeddings are stored.
        data: files of texts, see `mobileclip.datasets.sources.read_text_pairs`; as LANGUAGE=FILE where the file itself
            does not say the language of its texts, such as `de=german.txt`.
        columns: what the columns of tables are called.
        texts: folder of the teacher's embeddings of the texts, stored once; by default `texts` in the output. What is
            there of the same texts and teacher is used, by any number of runs.
        shares: of every batch by language, such as `de=2 en=1`; languages that are left out are not seen. None given
            takes every text as often as any other.
        kind: of the student's layers: `transformer`; `mct`, between two RepMixers; or `teacher`, which starts from the
            teacher's own text tower, its weights and its tokenizer, cut to the context length.
        context_length: number of ids per text; longer texts are cut.
        width: of the student's tokens, 256 by default.
        num_heads: attention heads per layer; by default one for each 64 numbers of the width.
        depth: number of the student's layers, 2 by default; 0 makes a bag of tokens.
        pool: what an embedding is read from: the `end` token, or the `mean` of the text's tokens, which is the default.
        tokenizer: a `tokenizer.json` for the student; the teacher's own by default, and CLIP's byte pairs for teachers
            of other libraries.
        initial_weights: a checkpoint of a text tower of the same choices to start from.
        batch_size: texts of a step, of all processes together.
        seed: of the order of the texts.
        training: how the student is trained.
        output: folder of the stored texts, metrics, checkpoints and the student; a second run goes on there.
        device: where to compute, such as cuda:1, mps or cpu; `auto` is the best device there is.
        trust: open an export of another target than ONNX as the teacher that another machine wrote; see
            `mobileclip.load`.

    Raises:
        ValueError: if a choice is out of its range, or not of the student's kind.

    Examples:
        >>> spec = DistilSpec(model="icons", data=("de=german.txt", "pairs.tsv"), shares=("de=2,en=1",), depth=0)
        >>> spec.language_shares, spec.student(512, mobileclip.inputs.TextInput()).pool
        ({'de': 2.0, 'en': 1.0}, 'mean')
    """

    model: str | None = None
    data: tuple[str, ...] = ()
    columns: TextColumns = attrs.field(factory=TextColumns)
    texts: Path | None = None
    shares: tuple[str, ...] = ()
    kind: Kind = attrs.field(default="transformer", validator=validators.in_(get_args(Kind)))
    context_length: int = attrs.field(default=32, validator=validators.ge(3))
    width: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    num_heads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    depth: int | None = attrs.field(default=None, validator=validators.optional(validators.ge(0)))
    pool: PoolName | None = attrs.field(default=None, validator=validators.optional(validators.in_(POOL_NAMES)))
    tokenizer: Path | None = None
    initial_weights: Path | None = None
    batch_size: int = attrs.field(default=256, validator=validators.gt(0))
    seed: int = attrs.field(default=0, validator=validators.ge(0))
    training: TrainingSpec = attrs.field(factory=_training)
    output: Path = Path("outputs/distil_text")
    device: str = attrs.field(default=AUTO, eq=False)
    trust: bool = attrs.field(default=False, eq=False)

    def __attrs_post_init__(self) -> None:
        """Check the shares, and that what the teacher decides is not chosen."""
        _ = self.language_shares
        given = [name for name in (*_OF_STUDENTS, "tokenizer", "initial_weights") if getattr(self, name) is not None]
        if self.kind == "teacher" and given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"--kind teacher starts from the teacher's own tower, which decides {flags}; leave it out")

    @property
    def language_shares(self) -> dict[str, float] | None:
        """The shares by language; None for as many as there are texts."""
        found: dict[str, float] = {}
        for one in filter(None, chain.from_iterable(given.split(",") for given in self.shares)):
            language, equals, share = one.partition("=")
            try:
                found[language.strip()] = float(share)
            except ValueError:
                equals = ""
            if not equals or not found[language.strip()] > 0:
                raise ValueError(
                    f"the share {one!r} is none; write LANGUAGE=NUMBER with a number above 0, such as de=2"
                )
        return found or None

    @property
    def texts_folder(self) -> Path:
        """Where the teacher's embeddings are stored."""
        return self.output / "texts" if self.texts is None else self.texts

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield the language and the path of every file of texts."""
        for given in self.data:
            named = None if Path(given).exists() else _LANGUAGE.fullmatch(given)
            yield (named[1], named[2]) if named else (self.columns.default_language, given)

    def pairs(self) -> Iterator[TextPair | BadSampleError]:
        """Yield the texts of all files, and what is wrong with a row in the place of one that cannot be used.

        Raises:
            ValueError, OSError: see `read_text_pairs`.
        """
        for language, path in self.files():
            yield from read_text_pairs(path, attrs.evolve(self.columns, default_language=language))

    def student(self, dim: int, text: TextInput) -> TextEncoderSpec:
        """Return the student, where it is not of the teacher's kind.

        Args:
            dim: of the teacher's embeddings.
            text: its text contract.
        """
        width = self.width or 256
        choices: dict[str, Any] = {
            "width": width,
            "num_heads": self.num_heads or _heads_of(width),
            "depth": 2 if self.depth is None else self.depth,
            "pool": self.pool or "mean",
            "embedding_dim": dim,
            "input": text,
        }
        return MCtSpec(**choices) if self.kind == "mct" else TextTransformerSpec(**choices)


def _heads_of(width: int) -> int:
    """Return the number of heads that share a width, as many as have at least 64 numbers each."""
    return next(heads for heads in range(max(1, width // _HEAD), 0, -1) if width % heads == 0)

"""Distillation of a text tower from texts only: stores the teacher's embeddings once, then trains the student.

`mobileclip.reinforce` stores texts with teacher embeddings; `mobileclip.training` contains the training loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from mobileclip import storage
from mobileclip.data import StoredTexts, TextPipelineSpec, Tokenizer, read_text_input
from mobileclip.data.skips import BadSampleError
from mobileclip.data.text.stored import CARD
from mobileclip.datasets.sources import TextColumns, TextPair, read_text_pairs
from mobileclip.encoders import DualEncoderSpec, MCtSpec, TextEncoderSpec, TextTransformerSpec, load_model, save_model
from mobileclip.encoders.checkpoints import PRETRAINED, LoadedCheckpoint, read_checkpoint
from mobileclip.encoders.checkpoints.published import is_export
from mobileclip.encoders.text import POOL_NAMES, PoolName
from mobileclip.evaluation.candidates import parse_model_argument
from mobileclip.hardware import AUTO
from mobileclip.inference.identity import stored_space
from mobileclip.inference.loading import load, require_model
from mobileclip.inputs import TextInput
from mobileclip.losses import TextDistillationLossSpec
from mobileclip.processes import this_process
from mobileclip.registry import nearest_file
from mobileclip.reinforce import TextTeacher, reinforce_texts
from mobileclip.reparam import reparameterize
from mobileclip.serialization import to_json
from mobileclip.strict import strict
from mobileclip.tensor_files.weights import weights_sha256
from mobileclip.terminal import console, say
from mobileclip.training import AdamWSpec, CosineSchedule, RunSpec, TrainingSpec, World, process_group, run
from mobileclip.training.run import SPEC, refuse_other_options

Kind = Literal["transformer", "mct", "teacher"]
_OF_STUDENTS = ("width", "num_heads", "depth", "pool")
_LANGUAGE = re.compile(r"([A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*)=(.+)")
_HEAD = 64
CHOICES, START = "distil.json", "start.safetensors"


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
    """The options of a text tower's distillation from texts only.

    Args:
        model: the teacher: a name, a checkpoint, a folder with a checkpoint or an export, `hf-hub:OWNER/NAME`,
            NAME=FILE, `open_clip:MODEL/TAG`, `transformers:OWNER/NAME` or `transformers:FOLDER`. Required until the
            teacher's embeddings are stored.
        data: text files, see `mobileclip.datasets.sources.read_text_pairs`; LANGUAGE=FILE for files without languages,
            such as `de=german.txt`.
        columns: column names of tables in `data`.
        texts: folder of the teacher's text embeddings; `texts` in the output folder by default. Runs with the same
            texts and teacher can share this folder.
        shares: share of each language in every batch, such as `de=2 en=1`; the run excludes other languages. By
            default, all texts are equally likely.
        kind: kind of student: `transformer`; `mct`, a transformer between two RepMixers; or `teacher`, the teacher's
            own text tower with its weights and tokenizer, truncated to the context length.
        context_length: number of ids per text; longer texts are truncated.
        width: dimension of the student's token embeddings, 256 by default.
        num_heads: number of attention heads per layer; by default one head per 64 dimensions of the width.
        depth: number of the student's layers, 2 by default; 0 for a bag of tokens.
        pool: `end` uses the end token, `mean` averages the text's tokens (default).
        tokenizer: a `tokenizer.json` for the student. The default is the teacher's tokenizer, or CLIP's BPE for
            teachers of other libraries.
        initial_weights: a checkpoint of a text tower with the student's options; None for random weights.
        batch_size: number of texts per step, over all processes.
        seed: random seed of the text order.
        training: options of the training loop: loss, schedule, optimiser and precision.
        output: folder of stored texts, metrics, checkpoints and the student; a second run with the same folder resumes.
        device: name of a device, such as cuda:1, mps or cpu; `auto` selects the best available device.
        trust: whether the teacher may be an export from another machine for a target other than ONNX; see
            `mobileclip.load`.

    Raises:
        ValueError: if an option is out of range, or does not apply to the student's kind.

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
        """Check the shares, and check that no option contradicts `kind`."""
        _ = self.language_shares
        given = [name for name in (*_OF_STUDENTS, "tokenizer", "initial_weights") if getattr(self, name) is not None]
        if self.kind == "teacher" and given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(
                f"--kind teacher starts from the teacher's own tower, which determines {flags}; leave these flags out"
            )

    @property
    def language_shares(self) -> dict[str, float] | None:
        """The share of each language; None if all texts are equally likely."""
        found: dict[str, float] = {}
        for one in filter(None, chain.from_iterable(given.split(",") for given in self.shares)):
            language, equals, share = one.partition("=")
            try:
                found[language.strip()] = float(share)
            except ValueError:
                equals = ""
            if not equals or not found[language.strip()] > 0:
                raise ValueError(
                    f"the share {one!r} is not valid; write LANGUAGE=NUMBER with a number above 0, such as de=2"
                )
        return found or None

    @property
    def texts_folder(self) -> Path:
        """The folder of the teacher's stored embeddings."""
        return self.output / "texts" if self.texts is None else self.texts

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield the language and path of every text file."""
        for given in self.data:
            named = None if Path(given).exists() else _LANGUAGE.fullmatch(given)
            yield (named[1], named[2]) if named else (self.columns.default_language, given)

    def pairs(self) -> Iterator[TextPair | BadSampleError]:
        """Yield the texts of all files, and an error for each unusable row.

        Raises:
            ValueError, OSError: see `read_text_pairs`.
        """
        for language, path in self.files():
            yield from read_text_pairs(path, attrs.evolve(self.columns, default_language=language))

    def student(self, dim: int, text: TextInput) -> TextEncoderSpec:
        """Return the student's spec, for kinds other than `teacher`.

        Args:
            dim: dimension of the teacher's embeddings.
            text: text input of the student.
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
    """Return the largest number of heads that divides the width with at least 64 dimensions per head."""
    return next(heads for heads in range(max(1, width // _HEAD), 0, -1) if width % heads == 0)


@attrs.frozen(kw_only=True, eq=False)
class OpenedTeacher:
    """A text teacher with its embedding space and tokenizer.

    Args:
        teacher: the loaded teacher, which encodes texts.
        text: text input of the teacher.
        space: identity of the model that defines the embedding space, as JSON; empty if unknown.
        tower: function that returns the teacher's text tower in training form for a context length; None if the teacher
            has no such tower.
    """

    teacher: TextTeacher
    text: TextInput = attrs.field(factory=TextInput)
    space: str = ""
    tower: Callable[[int], nn.Module] | None = None


@attrs.frozen(kw_only=True, eq=False)
class _Named:
    """A teacher for texts; see `TextTeacher`."""

    name: str
    weights_sha256: str
    dim: int
    encode_texts: Callable[[Sequence[str]], Tensor]


def require_teacher(text: str) -> None:
    """Raise an error for an invalid teacher name, without reading or downloading the teacher.

    Raises:
        ValueError, FileNotFoundError: see `open_teacher`.
    """
    require_model(*parse_model_argument(text).source)


def open_teacher(text: str, *, device: str = "cpu", trust: bool = False) -> OpenedTeacher:
    """Load a teacher by name.

    Args:
        text: name of the teacher, in a form that `DistilSpec.model` accepts.
        device: device of the teacher.
        trust: whether to open an export that may run code on this machine; see `mobileclip.load`.

    Raises:
        ValueError: if the model is unknown, or the extra for the model's library is not installed.
        FileNotFoundError: if the file does not exist.
    """
    one = parse_model_argument(text)
    place = one.file or PRETRAINED.get(one.model or "")
    space = tower = None
    if place is not None and not is_export(place):
        stored = read_checkpoint(place, one.model, mmap=True)
        if isinstance(stored.spec, TextEncoderSpec):
            return _of_tower(stored, place, device)
        if stored.provenance.space or not isinstance(stored.spec, DualEncoderSpec):  # else its own space
            space = stored_space(stored, place)
        tower = partial(_trainable, place, one.model)
    clip = load(*one.source, device=device, trust=trust, identify=True)
    identity = clip.identity
    assert identity is not None, "it was asked for"
    teacher = _Named(
        name=one.name,
        weights_sha256=identity.weights_sha256,
        dim=clip.model.spec.image.embedding_dim,
        encode_texts=clip.encode_text,
    )
    return OpenedTeacher(
        teacher=teacher, text=clip.model.spec.text.input, space=(space or identity).to_json(), tower=tower
    )


def _trainable(place: str, model: str | None, context_length: int) -> nn.Module:
    """Return the text tower of a checkpoint in training form, truncated to a context length."""
    return load_model(place, model, tower="text", fold=False, context_length=context_length)


def _of_tower(stored: LoadedCheckpoint, place: str, device: str) -> OpenedTeacher:
    """Return a single text tower as a teacher."""
    spec = stored.spec
    assert isinstance(spec, TextEncoderSpec), "asked before"
    built = stored.build()
    model = built if stored.form == "folded" else reparameterize(built, inplace=True)
    model.requires_grad_(requires_grad=False).to(device)
    tokenizer = Tokenizer(spec.input)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Tensor:
        embedding: Tensor = model(tokenizer(texts).to(device))
        return embedding.float().cpu()

    return OpenedTeacher(
        teacher=_Named(
            name=parse_model_argument(place).name,
            weights_sha256=weights_sha256(stored.tensors),
            dim=spec.embedding_dim,
            encode_texts=encode,
        ),
        text=spec.input,
        space=stored.provenance.space,
        tower=partial(_trainable, place, None),
    )


def distil(spec: DistilSpec, *, title: str = "distil") -> Path | None:
    """Distil a text tower, or resume an earlier run; return the tower's file (None in all processes but the first).

    Under `torchrun`, every process must call this function; rank 0 stores the teacher's embeddings while the
    others wait.

    Args:
        spec: options of the distillation.
        title: title of the progress display.

    Raises:
        ValueError: if an input is missing or not valid; if the output folder has a run with different options; or for
            the reasons listed in `mobileclip.reinforce.reinforce_texts` and `mobileclip.training.run`.
        FileNotFoundError: if a text file or the teacher's file does not exist.
    """
    is_stored = (spec.texts_folder / CARD).exists()
    missing = "--model" if spec.model is None and (spec.data or not is_stored) else "--data"
    if missing == "--model" or not (spec.data or is_stored):
        raise ValueError(
            f"{missing} is missing: a run needs both a teacher and texts (files of lines or tables) until the "
            "teacher's embeddings are stored (--texts); try a small run with `mobileclip train distil_text --tiny`"
        )
    if spec.model is not None:
        require_teacher(spec.model)
    elif spec.kind == "teacher":
        raise ValueError("--model is missing: --kind teacher starts from the teacher's own tower")
    for _, path in spec.files():
        if not (storage.is_remote(path) or path.endswith(".tar") or Path(path).is_file()):
            raise FileNotFoundError(f"there is no text file {path}{nearest_file(Path(path))}")
    if (spec.output / SPEC).exists():
        refuse_other_options(spec, spec.output, CHOICES)
    with process_group(spec.device, collective_seconds=spec.training.collective_seconds) as world:
        prepared = world.from_first(lambda: _prepared(spec, world))
        model = run(prepared, str(spec.output), title=title, console=console(), within=world)
    return Path(str(model)) if this_process().is_first else None


def _prepared(spec: DistilSpec, world: World) -> RunSpec:
    """Return the student's run, after storing the teacher's embeddings and other inputs."""
    spec.output.mkdir(parents=True, exist_ok=True)
    teacher = None
    if spec.model is not None:
        teacher = open_teacher(spec.model, device=str(world.device), trust=spec.trust)
    if spec.data:
        assert teacher is not None, "asked before"
        _, report = reinforce_texts(
            spec.pairs(), teacher.teacher, spec.texts_folder, space=teacher.space, console=console()
        )
        if report.num_skipped:
            say(f"{report.num_skipped:,} rows were left out: {report}", error=True)
    texts = StoredTexts(spec.texts_folder)
    model, initial_weights = _student(spec, texts.card.dim, teacher)
    storage.write_text(spec.output / CHOICES, to_json(spec, indent=1) + "\n")
    return RunSpec(
        model=model,
        data=TextPipelineSpec(
            texts=spec.texts_folder,
            batch_size=spec.batch_size,
            text=model.input,
            shares=spec.language_shares,
            seed=spec.seed,
        ),
        training=spec.training,
        initial_weights=initial_weights,
    )


def _student(spec: DistilSpec, dim: int, teacher: OpenedTeacher | None) -> tuple[TextEncoderSpec, Path | None]:
    """Return the student's spec and the file of the initial weights."""
    if spec.kind != "teacher":
        return spec.student(dim, _text_input(spec, teacher)), spec.initial_weights
    assert teacher is not None, "asked before"
    if teacher.tower is None:
        raise ValueError(f"{spec.model} has no trainable text tower; choose --kind transformer or mct")
    tower = teacher.tower(min(spec.context_length, teacher.text.context_length))
    save_model(tower, spec.output / START)
    started: TextEncoderSpec = tower.spec  # type: ignore[assignment]
    return started, spec.output / START


def _text_input(spec: DistilSpec, teacher: OpenedTeacher | None) -> TextInput:
    """Return the student's text input, with the tokenizer file of the spec or the teacher's tokenizer."""
    if spec.tokenizer is not None:
        return read_text_input(spec.tokenizer, context_length=spec.context_length)
    return attrs.evolve(TextInput() if teacher is None else teacher.text, context_length=spec.context_length)


def text_run(model: str, context_length: int, *, total_steps: int = 30_000) -> DistilSpec:
    """Return a run that shortens the context of a published text tower, by training on captions of DataCompDR-12M.

    Args:
        model: name of the model that is the teacher and the student's starting point.
        context_length: context length of the student.
        total_steps: number of steps of the run.
    """
    return DistilSpec(
        model=model,
        data=("DataCompDR-12M/{00000000..00001023}.tar",),
        kind="teacher",
        output=Path(f"outputs/distil_text_{model.removeprefix('mobileclip_')}-tokens_{context_length}"),
        context_length=context_length,
        batch_size=8_192,
        training=TrainingSpec(
            loss=TextDistillationLossSpec(relation_weight=10.0),
            schedule=CosineSchedule(peak=1e-4, final=1e-6, warmup_steps=1_000 / 30_000, total_steps=total_steps),
            optimizer=AdamWSpec(beta1=0.9, beta2=0.95, weight_decay=0.2),
            max_gradient_norm=1.0,
            ema_decay=0.9995,
            precision="bfloat16",
        ),
    )

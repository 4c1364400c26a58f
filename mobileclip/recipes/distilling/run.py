"""A distillation from its choices to its student: the teacher's embeddings are stored once, then the student trains."""

from __future__ import annotations

from pathlib import Path

import attrs

from mobileclip import storage
from mobileclip.data import StoredTexts, TextPipelineSpec, read_text_input
from mobileclip.data.text.stored import CARD
from mobileclip.encoders import TextEncoderSpec, save_model
from mobileclip.inputs import TextInput
from mobileclip.processes import this_process
from mobileclip.recipes.distilling.spec import DistilSpec
from mobileclip.recipes.distilling.teacher import OpenedTeacher, open_teacher, require_teacher
from mobileclip.registry import nearest_file
from mobileclip.reinforce import reinforce_texts
from mobileclip.serialization import from_json, to_json
from mobileclip.terminal import console, say
from mobileclip.training import RunSpec, World, connected, run
from mobileclip.training.run import SPEC

CHOICES, START = "distil.json", "start.safetensors"


def distil(spec: DistilSpec, *, title: str = "distil") -> Path | None:
    """Distil a text tower, or do what an earlier run left undone; its file, or None in any process but the first.

    Under `torchrun`, every process calls this; the first one stores the teacher's embeddings, and the others wait.

    Args:
        spec: the choices.
        title: what progress is shown under.

    Raises:
        ValueError: if something is missing or does not fit, or the output holds a run with other choices; see
            `mobileclip.reinforce.reinforce_texts` and `mobileclip.training.run`.
        FileNotFoundError: if there is no such file.
    """
    is_stored = (spec.texts_folder / CARD).exists()
    missing = "--model" if spec.model is None and (spec.data or not is_stored) else "--data"
    if missing == "--model" or not (spec.data or is_stored):
        raise ValueError(
            f"{missing} is missing: the teacher, and texts for it in files of lines or tables, are both needed until "
            "its embeddings are stored (--texts); try it on names of icons: `mobileclip train distil_text --tiny`"
        )
    if spec.model is not None:
        require_teacher(spec.model)
    elif spec.kind == "teacher":
        raise ValueError("--model is missing: --kind teacher starts from the teacher's own tower")
    for _, path in spec.files():
        if not (storage.is_remote(path) or path.endswith(".tar") or Path(path).is_file()):
            raise FileNotFoundError(f"there is no file of texts {path}{nearest_file(Path(path))}")
    _refuse_other(spec)
    with connected(spec.device, collective_seconds=spec.training.collective_seconds) as world:
        prepared = world.from_first(lambda: _prepared(spec, world))
        model = run(prepared, str(spec.output), title=title, console=console(), within=world)
    return Path(str(model)) if this_process().is_first else None


def _refuse_other(spec: DistilSpec) -> None:
    """Refuse, before texts are stored in its place, an output that holds a run of other choices."""
    path = spec.output / CHOICES
    if not (path.exists() and (spec.output / SPEC).exists()):
        return
    there = from_json(path.read_text(encoding="utf-8"), DistilSpec)
    if there != spec:
        raise ValueError(
            f"{spec.output} holds a run with other choices; delete it to start over, go on with these by "
            f"giving `{path}` before the flags, or keep it and choose another `--output`"
        )


def _prepared(spec: DistilSpec, world: World) -> RunSpec:
    """Return the run of the student, with everything that it needs in its place."""
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
    """Return the student, and what it starts from."""
    if spec.kind != "teacher":
        return spec.student(dim, _text_input(spec, teacher)), spec.initial_weights
    assert teacher is not None, "asked before"
    if teacher.tower is None:
        raise ValueError(f"{spec.model} has no text tower that can be trained; choose --kind transformer or mct")
    tower = teacher.tower(min(spec.context_length, teacher.text.context_length))
    save_model(tower, spec.output / START)
    started: TextEncoderSpec = tower.spec  # type: ignore[assignment]
    return started, spec.output / START


def _text_input(spec: DistilSpec, teacher: OpenedTeacher | None) -> TextInput:
    """Return the student's text contract: of the file that is named, or the teacher's."""
    if spec.tokenizer is not None:
        return read_text_input(spec.tokenizer, context_length=spec.context_length)
    return attrs.evolve(TextInput() if teacher is None else teacher.text, context_length=spec.context_length)

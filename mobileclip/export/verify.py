"""Measures an export against its model in its own runtime, and defines the gates that it must pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mobileclip.data.images.transform import ImageTransform
from mobileclip.export.contract import MOST_BYTES, NOT_RUN, REPORT, Contract, TowerFile, feature_name, read_contract
from mobileclip.export.measured import Measured, Outputs, read_measured
from mobileclip.export.running import runnable_target
from mobileclip.export.spec import TEXT_SPACE, Stage, Tower
from mobileclip.export.targets import Target
from mobileclip.export.targets.base import EXAMPLE_BATCH, Run
from mobileclip.export.towers import cut_to_length
from mobileclip.hardware import Precision
from mobileclip.inference.comparison import LEAST_AGREEMENT, LEAST_COSINE, first_results, least_agreement
from mobileclip.inference.forms import by_length
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import track
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import printable, read_bytes
from mobileclip.strict import strict

RANKING_GATE = "ranking agreement"
CLASSES = "classes"
# Cosines do not see lengths. Rounding moves them by less than this; a lost normalisation, or a lost factor, by more.
MOST_LENGTH_ERROR: dict[Precision, float] = {
    "float32": 1e-3,
    "float16": 2e-2,
    "bfloat16": 5e-2,
    "int8": 0.2,
    "int8-weights": 0.2,
}
MOST_MEAN_ERROR: dict[Precision, float] = {**MOST_LENGTH_ERROR, "float32": 1e-5}
"""Of the mean over places in the space of texts, from the embedding of the same file, whose length counts as 1."""
# Of the reference's spread: embeddings that have moved together by more have lost what tells images apart.
LEAST_SPREAD = 0.5
# For the rounding of agreements that are compared.
_ROUNDING = 1e-7


@attrs.frozen(kw_only=True, field_transformer=strict)
class Gate:
    """One acceptance check of an export: a measured value and its limit.

    Args:
        name: what it is.
        value: what was measured; None where it could not be, and then the gate has failed.
        bound: what it must reach.
        passed: whether it does.
    """

    name: str
    value: float | None
    bound: str
    passed: bool

    def __str__(self) -> str:
        """Return one line on what was measured and what was expected."""
        return f"{self.name} is {None if self.value is None else f'{self.value:.7g}'}, expected {self.bound}"


@attrs.frozen(kw_only=True, field_transformer=strict)
class TowerParity:
    """Deviation of an exported tower's embeddings, or feature maps of a stage, from the float32 model.

    A map counts as one long vector.

    Args:
        tower: which it is.
        count: embeddings that were compared.
        cosine_minimum: the least cosine of an embedding with its reference; None where a value is not finite.
        cosine_median: the median of those cosines.
        length_error: the largest relative error of an embedding's length.
        num_not_finite: embeddings with NaN or infinity.
        num_zero: embeddings of length zero, which an overflow in front of a normalisation gives.
        spread: `1 - |mean of the unit embeddings|`, zero where all are the same.
        reference_spread: the same of the model in float32.
        stage: whose feature maps these are; None for the embeddings.
        precision: of the file, where there are several.
        mean_error: of maps in the space of texts, the largest distance of a mean over places from the embedding that
            the file gives beside it, relative to that; None where a value is not finite, and of all else.
    """

    tower: Tower
    count: int
    cosine_minimum: float | None
    cosine_median: float | None
    length_error: float | None
    num_not_finite: int
    num_zero: int
    spread: float | None
    reference_spread: float
    stage: Stage | None = None
    precision: Precision | None = None
    mean_error: float | None = None


@attrs.frozen(kw_only=True, field_transformer=strict)
class Ranking:
    """Share of queries whose first result is the same in the export as in the float32 model.

    Args:
        kind: `image-text`: captions for images and images for captions; `neighbours`: the nearest other input of the
            same tower, where the model has one tower alone; `classes`: the class of the largest logit.
        num_queries: how many were ranked.
        agreement: share of them with the same first result.
    """

    kind: str
    num_queries: int
    agreement: float


@attrs.frozen(kw_only=True, field_transformer=strict)
class Report:
    """The report of an export: how near it is to its model, and its acceptance checks.

    Args:
        data: name of the data set.
        runtime: what ran the files.
        image_names: the images, in the order of the stored embeddings.
        captions: the captions, in the order of the stored embeddings.
        skipped: what could not be used of the data, by reason.
        towers: each exported tower, and each stage whose feature maps it gives.
        ranking: of the towers together.
        gates: all of them.
    """

    data: str
    runtime: str
    image_names: tuple[str, ...]
    captions: tuple[str, ...]
    skipped: Mapping[str, int]
    towers: tuple[TowerParity, ...]
    ranking: Ranking
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate was passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def is_ranked(self) -> bool:
        """Whether rankings were checked, of every precision; they are not where a model's embeddings hardly differ."""
        num_precisions = 1 + len({one.precision for one in self.towers} - {None})
        return sum(gate.name.endswith(RANKING_GATE) for gate in self.gates) >= num_precisions

    @property
    def failures(self) -> tuple[str, ...]:
        """What failed, a line each."""
        return tuple(str(gate) for gate in self.gates if not gate.passed)

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return f"{to_json(self, indent=2)}\n"


def compare_tower(tower: Tower, exported: Tensor, reference: Tensor, *, stage: Stage | None = None) -> TowerParity:
    """Return the deviation of exported embeddings, or feature maps, from the model's own.

    Shape:
        both `(count, embedding_dim)`, or `(count, channels, rows, columns)`.

    Args:
        tower: which it is.
        exported: what the file gives.
        reference: what the model gives.
        stage: whose feature maps these are; None for embeddings.
    """
    of_export, of_reference = exported.double().flatten(1), reference.double().flatten(1)
    finite = of_export.isfinite().all(dim=1)
    lengths, expected = of_export.norm(dim=1), of_reference.norm(dim=1)
    all_finite = bool(finite.all())
    cosines = (of_export * of_reference).sum(dim=1) / (lengths * expected).clamp_min(torch.finfo(torch.float64).tiny)
    return TowerParity(
        tower=tower,
        count=len(of_export),
        cosine_minimum=float(cosines.min()) if all_finite else None,
        cosine_median=float(cosines.quantile(0.5)) if all_finite else None,
        length_error=float((lengths / expected - 1).abs().max()) if all_finite else None,
        num_not_finite=int((~finite).sum()),
        num_zero=int((lengths == 0).sum()),
        spread=spread_of(of_export) if all_finite else None,
        reference_spread=spread_of(of_reference),
        stage=stage,
    )


def mean_error(maps: Tensor, embeddings: Tensor) -> float | None:
    """Return how far means over places are from embeddings, relative to these; None where a value is not finite.

    Shape:
        `(count, embedding_dim, rows, columns)`, and `(count or more, embedding_dim)`.
    """
    rows = embeddings[: len(maps)].double()
    errors = (maps.double().mean((2, 3)) - rows).norm(dim=1) / rows.norm(dim=1)
    return float(errors.max()) if bool(errors.isfinite().all()) else None


def compare_rankings(
    exported: Mapping[Tower, Tensor], reference: Mapping[Tower, Tensor], *, of_classes: bool = False
) -> Ranking:
    """Return how often the export and the model rank the same result first.

    Args:
        exported: embeddings by tower; a tower that was not exported is taken from `reference`.
        reference: the model's own, of all towers that it has.
        of_classes: whether they are logits of classes.
    """
    if of_classes:
        agree = exported["image"].argmax(dim=1) == reference["image"].argmax(dim=1)
        return Ranking(kind=CLASSES, num_queries=len(agree), agreement=float(agree.double().mean()))
    both = {**reference, **exported}
    if len(both) == 2:
        pairs: list[tuple[Tower, Tower]] = [("image", "text"), ("text", "image")]
        kind = "image-text"
    else:
        pairs = [(tower, tower) for tower in both]
        kind = "neighbours"
    same = torch.cat(
        [
            first_results(both[one], both[other]) == first_results(reference[one], reference[other])
            for one, other in pairs
        ]
    )
    return Ranking(kind=kind, num_queries=len(same), agreement=float(same.double().mean()))


def gates_of(towers: tuple[TowerParity, ...], ranking: Ranking, precision: Precision) -> tuple[Gate, ...]:
    """Return all gates of an export.

    A model that gives different inputs nearly the same embeddings, as one of random weights may, has no gates of the
    spread and of rankings: these differ although all embeddings are within the tolerance of the model's.

    Args:
        towers: what was measured of each.
        ranking: what was measured of them together.
        precision: of the export.
    """
    what = "logits" if ranking.kind == CLASSES else "embeddings"
    gates = [gate for parity in towers for gate in _tower_gates(parity, precision, what)]
    least = least_agreement(ranking.num_queries)
    bound = f">= {least:.4g}: {LEAST_AGREEMENT} within the 95 % interval of {ranking.num_queries} queries"
    # Floats of the same fraction, but for the last bit.
    passed = ranking.agreement > least - _ROUNDING
    if ranking.kind == CLASSES or not any(_is_constant(one, precision) for one in towers if one.stage is None):
        gates.append(Gate(name=RANKING_GATE, value=ranking.agreement, bound=bound, passed=passed))
    return tuple(gates)


def _is_constant(parity: TowerParity, precision: Precision) -> bool:
    """Return whether the model's own embeddings are as near to each other as a file's may be to them."""
    return parity.reference_spread <= 1 - LEAST_COSINE[precision]


def _tower_gates(parity: TowerParity, precision: Precision, what: str) -> Iterator[Gate]:
    name = parity.tower if parity.stage is None else f"{parity.tower} {feature_name(parity.stage)}"
    what = what if parity.stage is None else "maps"
    if parity.stage == TEXT_SPACE:
        yield _at_most(
            f"{name} mean over places, distance from the embedding", parity.mean_error, MOST_MEAN_ERROR[precision]
        )
    for kind, number in (("with NaN or infinity", parity.num_not_finite), ("of length zero", parity.num_zero)):
        yield Gate(name=f"{name} {what} {kind}", value=number, bound="0", passed=number == 0)
    least, cosine = LEAST_COSINE[precision], parity.cosine_minimum
    passed = cosine is not None and cosine > least
    yield Gate(name=f"{name} cosine, minimum", value=cosine, bound=f"> {least}", passed=passed)
    yield _at_most(f"{name} error of lengths", parity.length_error, MOST_LENGTH_ERROR[precision])
    if not _is_constant(parity, precision):
        spread, enough = parity.spread, LEAST_SPREAD * parity.reference_spread
        passed = spread is not None and spread >= enough
        called = f"{name} spread (zero where all {what} are the same)"
        yield Gate(name=called, value=spread, bound=f">= {enough:.3g}", passed=passed)


def _at_most(name: str, value: float | None, most: float) -> Gate:
    return Gate(name=name, value=value, bound=f"<= {most}", passed=value is not None and value <= most)


def spread_of(embeddings: Tensor) -> float:
    """Return how far embeddings point in different directions: `1 - |mean of the unit embeddings|`.

    Shape:
        `(count, embedding_dim)`.
    """
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return max(0.0, 1.0 - math.sqrt(float(unit.mean(dim=0).square().sum())))


_LEAST_RESIZED = 0.99  # between a picture that a file resizes, and the same that the library does
_NUM_RESIZED = 4


def verify_export(folder: str | Path, *, trust: bool = False, show_progress: bool = True) -> Report:
    """Return the deviation of an export from its model, measured again on the inputs stored beside it.

    Every file is checked against the contract first, then each tower's is run.

    Args:
        folder: that `export_model` wrote; nothing in it is changed.
        trust: whether to open an export that may run code here, see `load_export`.
        show_progress: whether to show, on standard error, how far it is and how long it takes.

    Raises:
        ImportError: if the runtime is not installed; the message has the command that installs it.
        NotRunHereError: if no runtime of the export's backend is here; its files are checked before.
        ValueError: if a file is missing or has changed, a library is older than the one that wrote the export, or a
            file cannot be run as the contract says, or may not be without trust. What does not pass a gate is in the
            report instead.
    """
    folder = Path(folder)
    contract = read_contract(folder)
    target = runnable_target(folder, contract, trust=trust)
    written = read_report(folder)
    measured = attrs.evolve(
        read_measured(folder, contract),
        image_names=written.image_names,
        captions=written.captions,
        skipped=written.skipped,
    )
    reports = {}
    for one in contract.each:
        exported = {
            tower.tower: run_tower(folder, one, target, tower, measured, show_progress=show_progress)
            for tower in one.towers
        }
        reports[one.precision] = report_on(
            exported, measured, precision=one.precision, data=written.data, runtime=target.runtime
        )
    return together(reports)


def read_report(folder: str | Path) -> Report:
    """Return the report that was written with an export.

    Raises:
        ValueError: if it cannot be read.
    """
    path = Path(folder) / REPORT
    try:
        return from_json(read_bytes(path, limit=MOST_BYTES).decode("utf-8"), Report)
    except (OSError, ValueError) as error:
        raise_machine_fault(error)
        raise ValueError(f"{path} cannot be read: {error}; export the model again") from error


def run_tower(
    folder: Path, contract: Contract, target: Target, tower: TowerFile, measured: Measured, *, show_progress: bool
) -> Outputs:
    """Return what an exported file gives for all inputs.

    Args:
        folder: where the file is.
        contract: of the export; the hashes in it are not looked at.
        target: the runtime.
        tower: the file.
        measured: the inputs.
        show_progress: whether to show how far it is.

    Raises:
        ValueError: if the file is not what the contract says, or cannot be read.
    """
    inputs = contract.taken(tower, measured.inputs[tower.tower])
    run = target.open(folder / tower.file, tower)
    if contract.image is not None and tower.takes_any_size:
        check_resizing(run, measured.inputs["image"], contract.image.input, folder / tower.file)
    batch = tower.input_shape[0] or EXAMPLE_BATCH
    parts = torch.split(inputs, batch)
    if contract.text is not None and tower.lengths:
        check_lengths(run, inputs, contract.text.input, tower, folder / tower.file)
        parts = tuple(cut_to_length(part, tower.lengths, contract.text.input) for part in parts)
    shown = track(parts, total=len(parts), title=f"running {tower.file}", unit="batches", shown=show_progress)
    batches = (_given(run, part.contiguous(), folder / tower.file, tower, contract) for part in shown)
    return Outputs.of_batches(batches, [one.stage for one in tower.features])


def check_resizing(run: Run, crops: Tensor, image: ImageInput, path: Path) -> None:
    """Make sure that a file resizes pictures as the library does: both ways, it gives the same embeddings.

    Args:
        run: the file.
        crops: uint8, `(pictures, 3, size, size)`; larger pictures with fine detail are made of them.
        image: the model's input.
        path: of the file, for the message.

    Raises:
        ValueError: if the embeddings of a picture differ from those of what the library makes of it.
    """
    transform = ImageTransform(image)
    for crop in crops[:_NUM_RESIZED]:
        picture = crop.repeat(1, 2, 3)[:, : 2 * image.size - 1, : 3 * image.size - 2].contiguous()
        pixels = transform.pixels(Image.fromarray(picture.movedim(0, -1).numpy()))
        host = torch.from_numpy(pixels).movedim(-1, 0).contiguous()
        inside, outside = (run(one[None])[0].float() for one in (picture, host))
        cosine = float(F.cosine_similarity(inside, outside).min())
        if not cosine >= _LEAST_RESIZED:
            raise ValueError(
                f"{path} resizes pictures otherwise than the library does: of a picture of {picture.shape[2]} x "
                f"{picture.shape[1]} pixels, its embedding and that of what the library makes of it have a cosine of "
                f"{cosine:.4f}, expected {_LEAST_RESIZED} or more; export with --preprocess uint8, and resize in "
                "the host"
            )


def check_lengths(run: Run, tokens: Tensor, text: TextInput, tower: TowerFile, path: Path) -> None:
    """Make sure that a file gives one embedding of a text, whichever of its lengths the row has.

    Args:
        run: the file.
        tokens: `(texts, context_length)`, as the file takes them; the longest is tried, cut in front of its end.
        text: what the model takes.
        tower: what the contract says of the file.
        path: of the file, for the message.

    Raises:
        ValueError: if the embeddings of a text differ more than the precision explains, or a length cannot be run.
    """
    longest = tokens[by_length(tokens, text)[-1:]]
    for length in tower.lengths[:-1]:
        row = torch.full_like(longest, text.pad_id)
        row[:, :length] = longest[:, :length]
        row[:, length - 1] = text.end_id
        whole, cut = (_run_or_refuse(run, one, path)[0].float() for one in (row, row[:, :length].contiguous()))
        cosine = float(F.cosine_similarity(cut, whole))
        # What leaves the range of its precision is for the gates.
        if whole.isfinite().all() and not cosine >= LEAST_COSINE[tower.compute]:
            raise ValueError(
                f"{path} gives another embedding of a text in a row of {length} ids than in one of {row.shape[1]}: "
                f"their cosine is {cosine:.4f}, expected {LEAST_COSINE[tower.compute]} or more; export with "
                "--text-lengths full"
            )


def _given(run: Run, inputs: Tensor, path: Path, tower: TowerFile, contract: Contract) -> tuple[Tensor, ...]:
    """Return what a file gives for one batch, if that is what the contract says."""
    outputs = _run_or_refuse(run, inputs, path)
    found = [tuple(one.shape[1:]) for one in outputs]
    expected = [(contract.output_dim,), *(one.shape[1:] for one in tower.features)]
    if found != expected:
        raise ValueError(
            f"{path} gives outputs of shapes {found}, and the contract says {expected}, without the batch; export the "
            "model again"
        )
    return outputs


def _run_or_refuse(run: Run, inputs: Tensor, path: Path) -> tuple[Tensor, ...]:
    try:
        return run(inputs)
    except Exception as error:
        raise_machine_fault(error)
        # The runtimes' errors have no base in common.
        raise ValueError(
            f"{path} cannot be run ({type(error).__name__}: {printable(error)}); export the model again"
        ) from error


def report_on(
    exported: Mapping[Tower, Outputs], measured: Measured, *, precision: Precision, data: str, runtime: str
) -> Report:
    """Return the report of what exported towers give.

    Args:
        exported: what `run_tower` gave for each tower.
        measured: inputs and reference.
        precision: of the export.
        data: name of the data set.
        runtime: what ran the files.
    """
    parities = tuple(
        parity for tower in exported for parity in _compared(tower, exported[tower], measured.reference[tower])
    )
    of_export, of_reference = (
        {tower: outputs.embeddings for tower, outputs in several.items()} for several in (exported, measured.reference)
    )
    ranking = compare_rankings(of_export, of_reference, of_classes=measured.of_classes)
    return Report(
        data=data,
        runtime=runtime,
        image_names=measured.image_names,
        captions=measured.captions,
        skipped=measured.skipped,
        towers=parities,
        ranking=ranking,
        gates=gates_of(parities, ranking, precision),
    )


def together(reports: Mapping[Precision, Report]) -> Report:
    """Return one report of several precisions, the first of which is that of the contract."""
    (_, whole), *others = reports.items()
    for precision, other in others:  # of the same inputs; the ranking of the first stays
        towers = (attrs.evolve(one, precision=precision) for one in other.towers)
        gates = (attrs.evolve(one, name=f"{precision}: {one.name}") for one in other.gates)
        whole = attrs.evolve(whole, towers=(*whole.towers, *towers), gates=(*whole.gates, *gates))
    return whole


def report_of_none(measured: Measured, *, data: str) -> Report:
    """Return the report of an export that nobody has run: no gate was asked, and one says so.

    Args:
        measured: inputs and reference, which lie beside the files for machines that can run them.
        data: name of the data set.
    """
    return Report(
        data=data,
        runtime=NOT_RUN,
        image_names=measured.image_names,
        captions=measured.captions,
        skipped=measured.skipped,
        towers=(),
        ranking=Ranking(kind=NOT_RUN, num_queries=0, agreement=0.0),
        gates=(Gate(name="runtimes that have run it", value=0, bound=">= 1", passed=False),),
    )


def _compared(tower: Tower, exported: Outputs, reference: Outputs) -> Iterator[TowerParity]:
    yield compare_tower(tower, exported.embeddings, reference.embeddings)
    for stage, maps in exported.features.items():
        parity = compare_tower(tower, maps, reference.features[stage], stage=stage)
        error = mean_error(maps, exported.embeddings) if stage == TEXT_SPACE else None
        yield attrs.evolve(parity, mean_error=error)

"""Compares an export, run in its own runtime, with the original model, and defines the acceptance checks."""

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

RANKING_CHECK = "ranking agreement"
CLASSES = "classes"
# Cosines ignore lengths. Rounding changes lengths by less than these limits, a missing normalisation or factor by more.
MOST_LENGTH_ERROR: dict[Precision, float] = {
    "float32": 1e-3,
    "float16": 2e-2,
    "bfloat16": 5e-2,
    "int8": 0.2,
    "int8-weights": 0.2,
}
MOST_MEAN_ERROR: dict[Precision, float] = {**MOST_LENGTH_ERROR, "float32": 1e-5}
"""Maximum distance between the mean of a text-space map and the file's embedding, relative to the embedding's norm."""
# Minimum fraction of the reference's spread: embeddings with less spread no longer distinguish images.
LEAST_SPREAD = 0.5
# Tolerance for rounding errors when agreements are compared.
_ROUNDING = 1e-7


@attrs.frozen(kw_only=True, field_transformer=strict)
class Check:
    """One acceptance check of an export: a measured value and its limit.

    Args:
        name: name of the check.
        value: measured value; None if the value could not be measured, in which case the check fails.
        bound: limit of the value as text, such as `<= 0.001`.
        passed: whether the value is within the limit.
    """

    name: str
    value: float | None
    bound: str
    passed: bool

    def __str__(self) -> str:
        """Return one line with the measured value and the limit."""
        return f"{self.name} is {None if self.value is None else f'{self.value:.7g}'}, expected {self.bound}"


@attrs.frozen(kw_only=True, field_transformer=strict)
class TowerParity:
    """Deviation of an exported tower's embeddings, or of a stage's feature maps, from the float32 model.

    The comparison flattens each feature map into one vector.

    Args:
        tower: `image` or `text`.
        count: number of compared embeddings or feature maps.
        cosine_minimum: minimum cosine between an embedding and its reference; None if a value is not finite.
        cosine_median: median of the cosines; None if a value is not finite.
        length_error: maximum relative error of the embeddings' L2 norms; None if a value is not finite.
        num_not_finite: number of embeddings with NaN or infinity.
        num_zero: number of embeddings with an L2 norm of zero, for example after an overflow before the normalisation.
        spread: `1 - |mean of the unit embeddings|`, zero for identical embeddings; None if a value is not finite.
        reference_spread: `spread` of the float32 model's embeddings.
        stage: stage of the feature maps; None for the embeddings.
        precision: precision of the file; None for the main precision of the export.
        mean_error: for text-space maps, the maximum distance between a map's mean and the file's embedding, relative to
            the embedding's norm; None for other outputs, or if a value is not finite.
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
    """Fraction of queries with the same first result in the export and in the float32 model.

    Args:
        kind: kind of queries. `image-text`: each image ranks the captions, and each caption ranks the images.
            `neighbours`, for a model with only one tower: each input ranks the other inputs. `classes`: each image
            ranks the classes by logit.
        num_queries: number of ranked queries.
        agreement: fraction of the queries with the same first result, from 0 to 1.
    """

    kind: str
    num_queries: int
    agreement: float


@attrs.frozen(kw_only=True, field_transformer=strict)
class Report:
    """The report of an export: its deviation from the model, and its acceptance checks.

    Args:
        data: name of the data set with the images and captions.
        runtime: name of the runtime that ran the files, or `written, not run`.
        image_names: names of the images, in the order of the reference embeddings.
        captions: texts of the data set, in the order of the reference embeddings.
        skipped: number of unusable images for each reason.
        towers: results of each exported tower, and of each stage with feature maps.
        ranking: agreement of the rankings in the main precision of the export.
        checks: all acceptance checks.
    """

    data: str
    runtime: str
    image_names: tuple[str, ...]
    captions: tuple[str, ...]
    skipped: Mapping[str, int]
    towers: tuple[TowerParity, ...]
    ranking: Ranking
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all acceptance checks passed."""
        return all(check.passed for check in self.checks)

    @property
    def is_ranked(self) -> bool:
        """Whether every precision has a ranking check; a model whose embeddings hardly differ has none."""
        num_precisions = 1 + len({one.precision for one in self.towers} - {None})
        return sum(check.name.endswith(RANKING_CHECK) for check in self.checks) >= num_precisions

    @property
    def failures(self) -> tuple[str, ...]:
        """Failed acceptance checks, one line each."""
        return tuple(str(check) for check in self.checks if not check.passed)

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return f"{to_json(self, indent=2)}\n"


def compare_tower(tower: Tower, exported: Tensor, reference: Tensor, *, stage: Stage | None = None) -> TowerParity:
    """Compare embeddings or feature maps of an exported file with the outputs of the model.

    Shape:
        exported, reference: `(count, embedding_dim)` or `(count, channels, rows, columns)`.

    Args:
        tower: `image` or `text`.
        exported: embeddings or feature maps from the exported file.
        reference: embeddings or feature maps from the float32 model.
        stage: stage of the feature maps; None for embeddings.
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
    """Return the maximum relative distance of a map's mean from its embedding; None if a value is not finite.

    Shape:
        maps: `(count, embedding_dim, rows, columns)`; embeddings: `(count or more, embedding_dim)`.
    """
    rows = embeddings[: len(maps)].double()
    errors = (maps.double().mean((2, 3)) - rows).norm(dim=1) / rows.norm(dim=1)
    return float(errors.max()) if bool(errors.isfinite().all()) else None


def compare_rankings(
    exported: Mapping[Tower, Tensor], reference: Mapping[Tower, Tensor], *, of_classes: bool = False
) -> Ranking:
    """Return the fraction of queries for which the export and the model rank the same result first.

    Args:
        exported: embeddings of the exported files, by tower; the embeddings in `reference` replace a missing tower.
        reference: embeddings of the model, by tower.
        of_classes: whether the outputs are class logits instead of embeddings.
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


def checks_of(towers: tuple[TowerParity, ...], ranking: Ranking, precision: Precision) -> tuple[Check, ...]:
    """Return all acceptance checks of an export.

    If a model gives nearly the same embedding for different inputs, for example with random weights, spread and ranking
    could differ even within the tolerance of the cosines. For such a model, the function omits the spread check and,
    except for classifiers, the ranking check.

    Args:
        towers: measured deviation of each tower.
        ranking: measured agreement of the rankings.
        precision: precision of the export.
    """
    what = "logits" if ranking.kind == CLASSES else "embeddings"
    checks = [check for parity in towers for check in _tower_checks(parity, precision, what)]
    least = least_agreement(ranking.num_queries)
    bound = f">= {least:.4g} (95 % interval over {ranking.num_queries} queries contains {LEAST_AGREEMENT})"
    # The values may be the same fraction and still differ in the last bit.
    passed = ranking.agreement > least - _ROUNDING
    if ranking.kind == CLASSES or not any(_is_constant(one, precision) for one in towers if one.stage is None):
        checks.append(Check(name=RANKING_CHECK, value=ranking.agreement, bound=bound, passed=passed))
    return tuple(checks)


def _is_constant(parity: TowerParity, precision: Precision) -> bool:
    """Return whether the model's own embeddings differ by less than the tolerance of the export."""
    return parity.reference_spread <= 1 - LEAST_COSINE[precision]


def _tower_checks(parity: TowerParity, precision: Precision, what: str) -> Iterator[Check]:
    name = parity.tower if parity.stage is None else f"{parity.tower} {feature_name(parity.stage)}"
    what = what if parity.stage is None else "maps"
    if parity.stage == TEXT_SPACE:
        yield _at_most(
            f"{name} mean over positions, distance from the embedding", parity.mean_error, MOST_MEAN_ERROR[precision]
        )
    for kind, number in (("with NaN or infinity", parity.num_not_finite), ("of length zero", parity.num_zero)):
        yield Check(name=f"{name} {what} {kind}", value=number, bound="0", passed=number == 0)
    least, cosine = LEAST_COSINE[precision], parity.cosine_minimum
    passed = cosine is not None and cosine > least
    yield Check(name=f"{name} cosine, minimum", value=cosine, bound=f"> {least}", passed=passed)
    yield _at_most(f"{name} length error", parity.length_error, MOST_LENGTH_ERROR[precision])
    if not _is_constant(parity, precision):
        spread, enough = parity.spread, LEAST_SPREAD * parity.reference_spread
        passed = spread is not None and spread >= enough
        called = f"{name} spread (zero if all {what} are the same)"
        yield Check(name=called, value=spread, bound=f">= {enough:.3g}", passed=passed)


def _at_most(name: str, value: float | None, most: float) -> Check:
    return Check(name=name, value=value, bound=f"<= {most}", passed=value is not None and value <= most)


def spread_of(embeddings: Tensor) -> float:
    """Return the spread of the directions of embeddings: `1 - |mean of the unit embeddings|`.

    Shape:
        `(count, embedding_dim)`.
    """
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return max(0.0, 1.0 - math.sqrt(float(unit.mean(dim=0).square().sum())))


_LEAST_RESIZED = 0.99  # cosine between the embeddings of an image resized by a file and by the library
_NUM_RESIZED = 4


def verify_export(folder: str | Path, *, trust: bool = False, show_progress: bool = True) -> Report:
    """Repeat the comparison of an export with its model, on the inputs stored in the export folder.

    The function first checks every file against the contract, and then runs the file of each tower.

    Args:
        folder: folder that `export_model` wrote; the function changes nothing in it.
        trust: whether to open an export that could run code on this machine; see `load_export`.
        show_progress: whether to show the progress and the time on standard error.

    Raises:
        ImportError: if the runtime is not installed; the message gives the install command.
        NotRunHereError: if this machine has no runtime for the export's backend; raised after the check of the files.
        ValueError: if a file is missing or changed, if a library is older than the one that wrote the export, if a file
            does not run as stated in the contract, or if the export needs trust. Failed acceptance checks do not raise
            an error; the report contains them.
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
    for one in contract.per_precision:
        exported = {
            tower.tower: run_tower(folder, one, target, tower, measured, show_progress=show_progress)
            for tower in one.towers
        }
        reports[one.precision] = report_on(
            exported, measured, precision=one.precision, data=written.data, runtime=target.runtime
        )
    return together(reports)


def read_report(folder: str | Path) -> Report:
    """Return the report that `export_model` wrote to an export folder.

    Raises:
        ValueError: if the report is missing or damaged.
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
    """Return the outputs of an exported file for all inputs.

    Args:
        folder: folder of the file.
        contract: contract of the export; the function does not check the file hashes.
        target: target with the runtime.
        tower: entry of the file in the contract.
        measured: inputs and reference outputs.
        show_progress: whether to show a progress bar.

    Raises:
        ValueError: if the file cannot be read or run, or does not match the contract.
    """
    inputs = contract.prepare_inputs(tower, measured.inputs[tower.tower])
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
    """Raise an error unless images resized by a file and by the library give nearly the same embeddings.

    Args:
        run: function that runs the file.
        crops: uint8, `(images, 3, size, size)`; the check composes larger images with fine detail from the crops.
        image: image preprocessing of the model.
        path: path of the file, for the message.

    Raises:
        ValueError: if resizing an image in the file and in the library gives embeddings with a cosine below 0.99.
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
                f"{path} resizes images differently from the library: for an image of {picture.shape[2]} x "
                f"{picture.shape[1]} pixels, the embeddings from the two resized images have a cosine of "
                f"{cosine:.4f}, expected at least {_LEAST_RESIZED}; export with --preprocess uint8 and resize in "
                "the host"
            )


def check_lengths(run: Run, tokens: Tensor, text: TextInput, tower: TowerFile, path: Path) -> None:
    """Raise an error unless a file gives the same embedding of a text at all row lengths.

    Args:
        run: function that runs the file.
        tokens: `(texts, context_length)`, in the file's input dtype; the check truncates the longest text to each
            length.
        text: text input of the model.
        tower: entry of the file in the contract.
        path: path of the file, for the message.

    Raises:
        ValueError: if the embeddings of a text differ by more than the tolerance of the precision, or the file fails to
            run at one of the lengths.
    """
    longest = tokens[by_length(tokens, text)[-1:]]
    for length in tower.lengths[:-1]:
        row = torch.full_like(longest, text.pad_id)
        row[:, :length] = longest[:, :length]
        row[:, length - 1] = text.end_id
        whole, cut = (_run_or_refuse(run, one, path)[0].float() for one in (row, row[:, :length].contiguous()))
        cosine = float(F.cosine_similarity(cut, whole))
        # The acceptance checks cover values outside the range of the precision.
        if whole.isfinite().all() and not cosine >= LEAST_COSINE[tower.compute]:
            raise ValueError(
                f"{path} gives different embeddings of a text in rows of {length} and of {row.shape[1]} ids: "
                f"their cosine is {cosine:.4f}, expected at least {LEAST_COSINE[tower.compute]}; export with "
                "--text-lengths full"
            )


def _given(run: Run, inputs: Tensor, path: Path, tower: TowerFile, contract: Contract) -> tuple[Tensor, ...]:
    """Return the outputs of a file for one batch, after a check against the contract."""
    outputs = _run_or_refuse(run, inputs, path)
    found = [tuple(one.shape[1:]) for one in outputs]
    expected = [(contract.output_dim,), *(one.shape[1:] for one in tower.features)]
    if found != expected:
        raise ValueError(
            f"{path} returns outputs of shapes {found}, expected {expected} from the contract (without the batch); "
            "export the model again"
        )
    return outputs


def _run_or_refuse(run: Run, inputs: Tensor, path: Path) -> tuple[Tensor, ...]:
    try:
        return run(inputs)
    except Exception as error:
        raise_machine_fault(error)
        # The errors of the runtimes have no common base class.
        raise ValueError(
            f"{path} cannot be run ({type(error).__name__}: {printable(error)}); export the model again"
        ) from error


def report_on(
    exported: Mapping[Tower, Outputs], measured: Measured, *, precision: Precision, data: str, runtime: str
) -> Report:
    """Return the report on the outputs of exported towers.

    Args:
        exported: outputs of each tower, from `run_tower`.
        measured: inputs and reference outputs.
        precision: precision of the export.
        data: name of the data set with the images and captions.
        runtime: name of the runtime that ran the files.
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
        checks=checks_of(parities, ranking, precision),
    )


def together(reports: Mapping[Precision, Report]) -> Report:
    """Combine the reports of several precisions, of which the first is the contract's own precision."""
    (_, whole), *others = reports.items()
    for precision, other in others:  # all reports have the same inputs; the first report's ranking is kept
        towers = (attrs.evolve(one, precision=precision) for one in other.towers)
        checks = (attrs.evolve(one, name=f"{precision}: {one.name}") for one in other.checks)
        whole = attrs.evolve(whole, towers=(*whole.towers, *towers), checks=(*whole.checks, *checks))
    return whole


def report_of_none(measured: Measured, *, data: str) -> Report:
    """Return the report of an export that no runtime has run; the report's only acceptance check fails.

    Args:
        measured: inputs and reference outputs, for a comparison on a machine that can run the export.
        data: name of the data set with the images and captions.
    """
    return Report(
        data=data,
        runtime=NOT_RUN,
        image_names=measured.image_names,
        captions=measured.captions,
        skipped=measured.skipped,
        towers=(),
        ranking=Ranking(kind=NOT_RUN, num_queries=0, agreement=0.0),
        checks=(Check(name="runtimes that ran the export", value=0, bound=">= 1", passed=False),),
    )


def _compared(tower: Tower, exported: Outputs, reference: Outputs) -> Iterator[TowerParity]:
    yield compare_tower(tower, exported.embeddings, reference.embeddings)
    for stage, maps in exported.features.items():
        parity = compare_tower(tower, maps, reference.features[stage], stage=stage)
        error = mean_error(maps, exported.embeddings) if stage == TEXT_SPACE else None
        yield attrs.evolve(parity, mean_error=error)

"""Run what was exported in its own runtime, and measure it against the model that it was exported from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mobileclip.data.images.transform import ImageTransform
from mobileclip.export.contract import MOST_BYTES, NOT_RUN, REPORT, Contract, TowerFile, read_contract
from mobileclip.export.measured import Measured, Outputs, read_measured
from mobileclip.export.parity import (
    Gate,
    Ranking,
    Report,
    TowerParity,
    compare_rankings,
    compare_tower,
    gates_of,
    mean_error,
)
from mobileclip.export.running import runnable_target
from mobileclip.export.spec import TEXT_SPACE, Tower
from mobileclip.export.targets import Target
from mobileclip.export.targets.base import EXAMPLE_BATCH, Run
from mobileclip.export.towers import as_taken, cut_to_length
from mobileclip.hardware.precision import Precision
from mobileclip.inference.comparison import LEAST_COSINE
from mobileclip.inference.forms import by_length
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import track
from mobileclip.storage import printable, read_bytes

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
        return Report.from_json(read_bytes(path, limit=MOST_BYTES).decode("utf-8"))
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
    inputs = measured.inputs[tower.tower]
    if tower.tower == "image":
        assert contract.image is not None
        inputs = as_taken(inputs, contract.image.input, contract.image.preprocess)
    else:
        inputs = inputs.to(getattr(torch, tower.input_dtype))
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
    for precision, report in others:
        whole = whole.beside(report, precision)
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

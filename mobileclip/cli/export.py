"""`mobileclip export | verify`: models for other runtimes."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from mobileclip.cli.arguments import require_exists, require_folder, split
from mobileclip.datasets.sources import RowOptions
from mobileclip.export.spec import ExportSpec
from mobileclip.storage import require_output_folder
from mobileclip.terminal import console, say
from mobileclip.terminal.common import Rare

if TYPE_CHECKING:
    from mobileclip.data.skips import SkipReport
    from mobileclip.evaluation import Benchmark, BenchmarkSample
    from mobileclip.evaluation.spec import EvaluationSpec
    from mobileclip.export import Report, Samples

_NUM_CALIBRATION = 100


def export(
    model: Annotated[Positional[str], arg(metavar="NAME|FILE|NAME=FILE")],
    /,
    *,
    spec: Annotated[
        ExportSpec,
        arg(name=""),
    ],
    data: Annotated[str | None, arg(metavar="DATA")] = None,
    max_images: Rare[int] = 100,
    calibration: Rare[str | None] = None,
    rows: Rare[OmitArgPrefixes[RowOptions]] = RowOptions(),  # noqa: B008  frozen
    preset: Annotated[str | None, arg(name="for", metavar="iphone|android|browser|server|...")] = None,
    overwrite: bool = False,
) -> None:
    """Export a model to another runtime: one file per tower, with a contract, the tokenizer and test inputs.

    mobileclip export mobileclip_s0.pt --target onnx --precision float16 -o s0_onnx

    mobileclip export mobileclip_s0.pt --for iphone -o s0_iphone

    The command runs each file in its runtime on real images and captions, and compares the embeddings with the
    embeddings of the float32 model. If a check fails, the exit status is 1, and the command keeps the folder with its
    report. If this machine lacks the runtime (such as Core ML without a Mac), the report states that the command did
    not run the file.

    Args:
        model: a name such as mobileclip_s0 (the command downloads its weights once), a file of weights in any known
            layout, a folder with one, hf-hub:OWNER/NAME, or NAME=FILE for a file that does not state its model.
        spec: options of the export.
        data: a data set for the checks, as for mobileclip eval; by default images in the package.
        max_images: maximum number of images of the data set; the folder stores the model inputs of these images for
            mobileclip verify.
        calibration: a data set to calibrate int8 ranges (its first hundred images); by default, crops of the images for
            the checks.
        rows: column names of .jsonl files and tables.
        preset: platform that sets the defaults of target, layout, precisions, preprocessing and batches. Explicit flags
            override these defaults.
        overwrite: replace an existing export.
    """
    from mobileclip.encoders.checkpoints import companion
    from mobileclip.encoders.checkpoints.published import CONTRACT
    from mobileclip.export import export_model, read_contract, read_report
    from mobileclip.export.contract import NOT_RUN
    from mobileclip.export.layouts import fitted
    from mobileclip.export.spec import presets
    from mobileclip.export.targets import targets
    from mobileclip.export.targets.base import require_able
    from mobileclip.inference.loading import require_model

    model, checkpoint = split(model)
    if preset is not None:
        spec = presets.resolve(preset).fitted(spec)
        kinds = ", ".join(spec.precisions)
        say(f"for {preset}: target {spec.target}, layout {spec.layout}, {kinds}; pixels: {spec.preprocess}", error=True)
    spec = fitted(spec)
    target = targets.resolve(spec.target)
    require_able(target, spec)
    target.check()
    require_output_folder(spec.output, overwrite=overwrite, marker=CONTRACT)
    require_model(model, checkpoint)
    if (second := companion(model)) is not None:
        say(
            f"{model} has a second text tower, which this export lacks; to export that tower: mobileclip "
            f"export {second}",
            error=True,
        )
    if max_images < 2:
        raise ValueError(f"--max-images is {max_images}; ranking needs at least 2")
    for path in filter(None, (data, calibration)):
        require_exists(path, "a data set for the checks")
    samples = None if data is None else _samples(data, max_images, rows)
    ranges = None if calibration is None else _samples(calibration, _NUM_CALIBRATION, rows)
    folder = export_model(
        model, spec, checkpoint=checkpoint, samples=samples, calibration=ranges, preset=preset, overwrite=overwrite
    )
    say(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if read_contract(folder).state == NOT_RUN:
        say(f"{NOT_RUN}: this machine lacks the runtime; compare the golden vectors on a device", error=True)
        return
    _conclude(read_report(folder), f"{folder} failed a check; see report.json in the folder")


def verify(
    folder: Annotated[Positional[Path], arg(metavar="DIR")],
    /,
    *,
    trust: Rare[bool] = False,
    data: str | None = None,
    model: Annotated[str | None, arg(metavar="FILE|FOLDER|hf-hub:OWNER/NAME")] = None,
    output: Annotated[Path, arg(metavar="FOLDER")] = Path("outputs/verification"),
    rows: Rare[OmitArgPrefixes[RowOptions]] = RowOptions(),  # noqa: B008  frozen
) -> None:
    """Run an export in its runtime, and compare the embeddings with the embeddings of the original model.

    mobileclip verify s0_onnx

    mobileclip verify s0_onnx --data wds_imagenetv2_test -m mobileclip_s0.pt

    With --data, the command also evaluates export and model on a data set, and compares the results image by image.
    The exit status is 1 if an acceptance check fails or the export is significantly worse, and 2 if files are missing
    or changed, or this machine cannot run the export.

    Args:
        folder: output of `mobileclip export`.
        trust: open files from another machine in runtimes that do not validate files (all targets except ONNX). The
            author of the files can then run any code on this machine. ONNX files with unknown operators also need this
            flag.
        data: a data set, as for mobileclip eval.
        model: the checkpoint that was exported, as for mobileclip export; needed with --data.
        output: folder for results and embeddings on the data set; the command reuses stored embeddings.
        rows: column names of .jsonl files and tables.
    """
    from mobileclip.export import verify_export

    require_folder(folder, "a folder that mobileclip export wrote")
    if (data is None) != (model is None):
        raise ValueError("--data needs --model, and vice versa, to compare the export with its model")
    _conclude(verify_export(folder, trust=trust), f"{folder} fails a check")
    if data is not None and model is not None:
        from mobileclip.evaluation.spec import EvaluationSpec

        spec = EvaluationSpec(datasets=(data,), output=output, trust=trust, rows=rows)
        if _loses(folder, model, spec):
            sys.exit(1)


def _loses(folder: Path, checkpoint: str, spec: EvaluationSpec) -> bool:
    """Print an export's loss of accuracy on a data set, and return whether it is significant."""
    from mobileclip.evaluation.results import differences
    from mobileclip.evaluation.run import evaluate_models, summarize
    from mobileclip.export.running import require_exported_from

    require_exported_from(folder, checkpoint)
    run = evaluate_models([f"model={checkpoint}", f"export={folder}"], spec, console=console())
    if run.failures:
        raise ValueError("; ".join(failure.message for failure in run.failures))
    model, export = summarize(run)
    is_worse = False
    for row in differences(export, model):
        assert row.interval is not None, "the run evaluated both on the same data set"
        assert row.value is not None, "the run evaluated the export"
        assert row.reference is not None, "the run evaluated the model"
        low, high = row.interval.low, row.interval.high
        say(
            f"{row.dataset}, {row.metric}: {100 * row.reference:.2f} -> {100 * row.value:.2f} %, "
            f"{100 * (row.value - row.reference):+.2f} (95 %: {100 * low:+.2f} to {100 * high:+.2f}); "
            f"{row.num_images} images"
        )
        is_worse = is_worse or high < 0
    return is_worse


def _conclude(report: Report, failure: str) -> None:
    """Print a report; exit with status 1 if a check failed."""
    from mobileclip.export.contract import feature_name

    for name, count in report.skipped.items():
        say(f"left out of {report.data}: {count} images ({name})", error=True)
    for tower in report.towers:
        minimum, median = tower.cosine_minimum, tower.cosine_median
        cosines = "not finite" if minimum is None or median is None else f"at least {minimum:.7f}, median {median:.7f}"
        name = tower.tower if tower.stage is None else f"{tower.tower} {feature_name(tower.stage)}"
        name = name if tower.precision is None else f"{tower.precision}, {name}"
        say(f"{name}: cosine with float32 over {tower.count} {_unit(tower.tower)}: {cosines}")
    say(f"ranking: {report.ranking.agreement:.2%} of {report.ranking.num_queries} first results agree with float32")
    if not report.is_ranked:
        say(
            "rankings could not be checked: the embeddings hardly differ, so a file that ignores its input would pass",
            error=True,
        )
    say(f"run by: {report.runtime}")
    if report.passed:
        say(f"passed: all {len(report.checks)} acceptance checks")
        return
    say(f"{failure}:", error=True)
    for line in report.failures:
        say(f"  {line}", error=True)
    sys.exit(1)


def _unit(tower: str) -> str:
    return "images" if tower == "image" else "captions"


def _samples(path: str, max_images: int, rows: RowOptions) -> Samples:
    """Return the first images of a data set with their captions, or with its classes as captions."""
    from mobileclip.data.skips import SkipReport
    from mobileclip.evaluation import open_benchmark
    from mobileclip.export import Samples

    benchmark, report = open_benchmark(path, rows=rows), SkipReport()
    samples = list(islice(benchmark.samples(report), max_images))
    _tell_skips(report)
    return Samples(
        name=benchmark.name,
        image_names=tuple(sample.key for sample in samples),
        images=tuple(sample.image for sample in samples),
        captions=_captions(benchmark, samples),
    )


def _captions(benchmark: Benchmark, samples: list[BenchmarkSample]) -> tuple[str, ...]:
    """Return the distinct captions of a data set, for ranking."""
    from mobileclip.inference.texts import fill_templates

    if benchmark.kind == "retrieval":
        texts = [caption for sample in samples for caption in sample.captions]
    else:
        texts = fill_templates(benchmark.class_names, benchmark.templates[:1])
    return tuple(dict.fromkeys(texts))


def _tell_skips(report: SkipReport) -> None:
    for reason, count in report.counts.items():
        say(f"left out of the data: {count} samples ({reason})", error=True)

"""`mobileclip quantize`: a model tuned by itself to compute in int8, as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mobileclip.cli.models import BatchSize, report_skipped, split
from mobileclip.terminal import say
from mobileclip.terminal.status import conclude


def quantize(
    model: Annotated[Positional[str], arg(metavar="NAME|FILE|NAME=FILE")],
    /,
    *,
    images: Annotated[tuple[str, ...], arg(metavar="IMAGE|FOLDER|DATA")] = (),
    texts: Annotated[tuple[str, ...], arg(metavar="FILE|DATA")] = (),
    output: Annotated[Path, arg(metavar="FILE.safetensors")],
    steps: int = 200,
    num_images: int = 512,
    num_texts: int = 2048,
    batch_size: BatchSize = 8,
    grouped: bool = False,
    outputs: bool = False,
    most_float: float = 0.2,
    learning_rate: float = 1e-2,
    seed: int = 0,
    seconds_between_saves: float = 20.0,
    overwrite: bool = False,
) -> None:
    """Tune a model to compute in 8 bits what it computes in float32, and write one file that every int8 target takes.

    mobileclip quantize mobileclip_s0 --images photos/ --texts captions.txt -o s0_int8.safetensors

    The model is its own teacher: for minutes on a processor, it learns the ranges of what goes into convolutions and
    linear layers, and which way each weight is rounded, so that its embeddings, and their order, stay. Grouped
    convolutions, and the few layers that lose most, stay in float32. Pictures and texts of any kind do, hundreds of
    each, and need no labels. What is given is tuned: with --images alone the image
    tower, with --texts alone the text tower; the other one stays in float32.

    A quarter of the inputs is held out, up to 256. On these, the end prints cosines with float32, the part of first
    results that are the same, with a 95 % interval, and whether the acceptance checks of int8 pass.

    The file is a checkpoint as any other. Its weights lie on their grid of 8 bits already, so that float32 and int8
    compute with the same ones; its ranges lie beside them, for mobileclip export --precision int8 and
    mobileclip.optimize(..., precision="int8"). A run that was stopped goes on: the same command does the rest.

    Args:
        model: a name, a checkpoint in any known layout, whole or a tower, or NAME=FILE where a file does not say what
            it holds.
        images: image files, folders that are searched for image files, and data sets; several times for several.
        texts: files with one text a line, tables with a column text, shards, and folders with captions; several times
            for several.
        output: the file to write, *.safetensors.
        steps: optimiser steps for each tower.
        num_images: pictures that are used, of more files some, of data sets the first.
        num_texts: texts that are used, of more some.
        batch_size: inputs of a step.
        grouped: round grouped convolutions too, for runtimes that are slow without: they lose most.
        outputs: tune the ranges of what convolutions give, for runtimes that need them.
        most_float: part of the multiplications that may stay in float32 where the acceptance checks refuse all in int8.
        learning_rate: initial learning rate.
        seed: random seed of the sample of inputs and of their order.
        seconds_between_saves: after which the state is written beside the output, to go on from.
        overwrite: replace a file that is there.
    """
    from mobileclip.inference import QuantizationSpec
    from mobileclip.inference.quantization import PlacesSpec, TuningSpec

    name, file = split(model)
    spec = QuantizationSpec(
        model=name,
        checkpoint=file,
        images=images,
        texts=texts,
        output=output,
        num_images=num_images,
        num_texts=num_texts,
        batch_size=batch_size,
        places=PlacesSpec(grouped=grouped, outputs=outputs, most_float=most_float),
        tuning=TuningSpec(num_steps=steps, learning_rate=learning_rate),
        seed=seed,
        seconds_between_saves=seconds_between_saves,
        overwrite=overwrite,
    )
    report = spec.run()
    report_skipped(report.skipped, len(report.skipped), called="inputs")
    say(report)
    for tower, layers in report.float32.items():
        if layers:
            say(f"in the {tower} tower, {len(layers)} layers stay in float32: {', '.join(layers)}")
    for tower, seconds in report.seconds_per_step.items():
        say(f"tuning the {tower} tower took {seconds:.2f} s a step")
    if report.is_refused:
        say("in int8 a refused tower ranks otherwise than in float32: more steps, or more inputs like your own, help")
    say(f"wrote {output}")
    conclude(left_out=report.skipped)

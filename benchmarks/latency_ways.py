"""Every way to compute the embeddings of a tower that is compared: the release's, compiled, exported, and model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import attrs
import torch
from torch import Tensor, nn

from benchmarks.latency_exported import Runtime, exported
from benchmarks.rivals import Tower
from mobileclip.encoders import DualEncoder
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference import optimize_tower, prepared_tower
from mobileclip.inference.optimization.optimizing import ENGINES
from mobileclip.reparam import reparameterize

Way = Literal[
    "release",
    "release_compiled",
    "release_onnxruntime",
    "release_openvino",
    "release_openvino_bf16",
    "eager",
    "optimized_fp32",
    "optimized_bf16",
    "optimized_int8",
    "onnxruntime",
    "openvino",
    "openvino_bf16",
]
Encode = Callable[[Tensor], Tensor]
_OPTIMIZED: dict[FastPrecision, Way] = {
    "float32": "optimized_fp32",
    "bfloat16": "optimized_bf16",
    "int8": "optimized_int8",
}


@attrs.frozen(kw_only=True)
class Side:
    """One way to compute embeddings.

    Args:
        way: which.
        encode: from inputs to embeddings.
        form: what the optimiser chose.
    """

    way: Way
    encode: Encode
    form: str = ""


def sides(
    model: DualEncoder,
    release: nn.Module,
    inputs: Tensor,
    tower: Tower,
    *,
    precisions: tuple[FastPrecision, ...],
    compiled: bool,
    runtimes: tuple[Runtime, ...],
    rounds: int,
    folder: Path,
) -> Iterator[Side]:
    """Yield every way to compute the embeddings of `inputs`, the release's first.

    Args:
        model: of this library, in training form.
        release: the release's tower with the same weights, reparameterised.
        inputs: images or token ids.
        tower: which tower.
        precisions: in which the model is optimised.
        compiled: whether the release's way and this library's are compiled.
        runtimes: that both sides are exported to.
        rounds: timed calls that the optimiser chooses by.
        folder: of the exported files.
    """
    yield Side(way="release", encode=release)
    if compiled:
        # A copy: what is compiled keeps a cache of its own in the module.
        yield Side(way="release_compiled", encode=torch.compile(copy.deepcopy(release), dynamic=False))
    folded = reparameterize(model)
    mine = folded.image_encoder if tower == "image" else folded.text_encoder
    yield Side(way="eager", encode=prepared_tower(mine))
    engines = ENGINES if compiled else ENGINES[:1]
    for precision in precisions:
        fast, report = optimize_tower(mine, inputs, precision=precision, engines=engines, rounds=rounds)
        form = "folded" if report.used is None else str(report.used.form)
        yield Side(way=_OPTIMIZED[precision], encode=fast, form=form)
    for runtime in runtimes:
        for whose, rival in (("release_", release), ("", None)):
            way: Way = f"{whose}{runtime}"  # type: ignore[assignment]  # all of these are ways
            encode = exported(mine, tower, runtime, batch_size=len(inputs), rival=rival, folder=folder / way)
            yield Side(way=way, encode=encode)

"""MobileCLIP-S2 against SigLIP's ViT-B/16, the comparison in MobileCLIP's abstract: one image and one text.

Command:   python -m benchmarks headline --output outputs/headline.json            (needs the extra `test`)
Hardware:  any CPU; both sides take turns, so other programs slow both sides
Time:      two minutes on two cores
Result:    a table: processor time of each tower, and the ratio of SigLIP's time to ours in processor time and wall time

Both models have random weights, and run in eager PyTorch and in OpenVINO in float32. Images and texts have the
published sizes of each model: 256 and 224 pixels, and 77 and 64 ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

from benchmarks.harness import Bench, Case, Row, Seconds, Value, clocked, in_turn, ratio, require, spread
from mobileclip import reparameterize, specs
from mobileclip.inference.openvino_backend import converted, openvino_core

Way = Literal["eager", "openvino"]


@attrs.frozen(kw_only=True)
class HeadlineBenchSpec(Bench):
    """Settings of the comparison.

    Args:
        ways: runtimes of both sides.
        rounds: number of timed calls per side.
        seed: seed of the weights and the inputs.
    """

    ways: tuple[Way, ...] = ("eager", "openvino")
    rounds: int = attrs.field(default=20, validator=validators.gt(1))
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {"ways": ("eager",), "rounds": 2}
    selects: ClassVar[frozenset[str]] = frozenset(("ways",))

    def cases(self) -> Iterator[Case]:
        """Yield the ways."""
        require("open_clip")
        for way in self.ways:
            yield Case(labels={"way": way}, measure=partial(measure, self, way))


@torch.inference_mode()
def measure(spec: HeadlineBenchSpec, way: Way) -> list[Row]:
    """Return the times for one image, for one text, and for both."""
    import open_clip  # type: ignore[import-untyped]

    torch.manual_seed(spec.seed)
    ours = reparameterize(specs.mobileclip_s2().build().eval())
    theirs = open_clip.create_model("ViT-B-16-SigLIP").eval()
    pixels = {side: torch.rand(1, 3, side, side) for side in (256, 224)}
    ids = {length: torch.randint(1, 30_000, (1, length)) for length in (77, 64)}
    sides = {
        ("image", "s2"): (ours.image_encoder, pixels[256]),
        ("image", "siglip"): (theirs.visual, pixels[224]),
        ("text", "s2"): (ours.text_encoder, ids[77]),
        ("text", "siglip"): (theirs.text, ids[64]),
    }
    calls = {f"{tower} {model}": clocked(_call(*side, way)) for (tower, model), side in sides.items()}
    for call in calls.values():
        call()
    taken = in_turn(calls, rounds=spec.rounds)
    for model in ("s2", "siglip"):
        towers = zip(taken[f"image {model}"], taken[f"text {model}"], strict=True)
        taken[f"both {model}"] = [Seconds(wall=a.wall + b.wall, cpu=a.cpu + b.cpu) for a, b in towers]
    return [Row(case={"tower": tower}, values=_compared(taken, tower)) for tower in ("image", "text", "both")]


def _compared(taken: Mapping[str, Sequence[Seconds]], tower: str) -> dict[str, Value]:
    """Return the time of both sides for a tower: processor time, which other programs affect little, and wall time."""
    ours, theirs = taken[f"{tower} s2"], taken[f"{tower} siglip"]
    return {
        "MobileCLIP-S2": spread([1000 * one.cpu for one in ours], "ms"),
        "SigLIP ViT-B/16": spread([1000 * one.cpu for one in theirs], "ms"),
        "CPU ratio": ratio([one.cpu for one in theirs], [one.cpu for one in ours]),
        "ratio": ratio([one.wall for one in theirs], [one.wall for one in ours]),
    }


def _call(module: nn.Module, taken: Tensor, way: Way) -> Callable[[], object]:
    """Return a function that computes the embedding of an input."""
    if way == "eager":
        return torch.inference_mode()(partial(module, taken))
    model = converted(torch.export.export(module.eval(), (taken,)))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino_core().compile_model(model, "CPU", options)
    request, given = compiled.create_infer_request(), [taken.numpy()]
    return lambda: request.infer(given, share_inputs=True)

"""int8 of all layers, and of those that `mobileclip quantize` rounds, before and after tuning; NNCF's default beside.

Command:   python -m benchmarks quantization --images PICTURES --texts TEXTS      (needs the extra `test`)
           python -m benchmarks quantization --models icons --towers text      (a first look)
Hardware:  any CPU; OpenVINO's rows need a processor with VNNI or AMX to mean anything in milliseconds
Time:      minutes for icons; for s0, whose step takes seconds, an hour on two cores
Result:    a table: smallest and mean cosine with float32 on inputs that were held out; first results that are as in
           float32, in both directions, with a 95 % interval; what the gates say; seconds a step; layers in float32;
           milliseconds, and those of the processor, beside float32's in turn

A model is a name or a file. s0 is MobileCLIP-S0 with random weights, whose batch norms were set on pictures. Pictures
and texts are found as `mobileclip quantize` finds them; parts of three photos, and random words, by default.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor, nn

import mobileclip
from benchmarks.data import WORDS, photo
from benchmarks.harness import Bench, Case, Row, Value, in_turn, ratio, require, rounds_of, spread
from benchmarks.rivals import PUBLISHED, random_model
from benchmarks.runtime_forms import DefaultInt8
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.data.randomness import seeded_rng
from mobileclip.encoders import DualEncoder
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference.comparison import turn
from mobileclip.inference.forms import causal_pool, with_depthwise_convs, with_one_token
from mobileclip.inference.optimization import Int8Model, TunedInt8Model, openvino_program
from mobileclip.inference.quantization import (
    PlacesSpec,
    TowerQuality,
    Tuning,
    TuningSpec,
    batches_of,
    layers_in_float32,
    num_checked,
    rounded,
    with_rounded_weights,
)
from mobileclip.inference.quantizing import read_captions, read_pictures
from mobileclip.reparam import reparameterize

TowerName = Literal["image", "text"]
_AT_ONCE = 16


@attrs.frozen(kw_only=True)
class QuantizationBenchSpec(Bench):
    """What to quantise, on what, and how long.

    Args:
        models: names, files, or s0.
        towers: which of their towers.
        images: where pictures are.
        texts: where texts are.
        num_inputs: of each tower that it is tuned on.
        num_held_out: of each tower that it is measured on.
        num_observed: of those that ranges are found with.
        most_float: part of the multiplications that may stay in float32, see `PlacesSpec`.
        steps: of the optimiser.
        batch_size: inputs of a step.
        batch_sizes: inputs of a timed call.
        rounds: timed calls; none leaves times out.
        seed: of weights and inputs.
    """

    models: tuple[str, ...] = ("icons", "s0")
    towers: tuple[TowerName, ...] = ("image", "text")
    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    num_inputs: int = attrs.field(default=384, validator=validators.ge(2))
    num_held_out: int = attrs.field(default=128, validator=validators.ge(2))
    num_observed: int = attrs.field(default=128, validator=validators.gt(0))
    most_float: float = attrs.field(default=0.1, validator=[validators.ge(0), validators.le(1)])
    steps: int = attrs.field(default=200, validator=validators.gt(0))
    batch_size: int = attrs.field(default=8, validator=validators.ge(2))
    batch_sizes: tuple[int, ...] = attrs.field(default=(1, 32), validator=validators.deep_iterable(validators.gt(0)))
    rounds: int = attrs.field(default=15, validator=validators.ge(0))
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {
        "models": ("icons",),
        "towers": ("text",),
        "num_inputs": 8,
        "num_held_out": 4,
        "steps": 2,
        "rounds": 0,
    }
    selects: ClassVar[frozenset[str]] = frozenset(("models", "towers"))

    def cases(self) -> Iterator[Case]:
        """Yield every tower of every model."""
        require("openvino", "nncf", "timm")
        for model, tower in product(self.models, self.towers):
            labels = {"model": Path(model).name, "tower": tower}
            yield Case(labels=labels, measure=partial(measure, self, model, tower))


@torch.no_grad()
def measure(spec: QuantizationBenchSpec, name: str, tower: TowerName) -> Iterator[Row]:
    """Yield what each way keeps of a tower's embeddings, and how long a call takes."""
    model = random_s0(spec.seed) if name == "s0" else mobileclip.load(name).model
    inputs = {"image": pictures, "text": captions}[tower](spec, model)
    others = {"image": captions, "text": pictures}[tower](spec, model)[-spec.num_held_out :]
    module, other = model.image_encoder, model.text_encoder
    if tower == "text":
        module, other = other, module
    count = num_checked(spec.num_inputs)
    checked, tuned_on = torch.split(inputs[:count], _AT_ONCE), inputs[count : -spec.num_held_out]
    held_out = inputs[-spec.num_held_out :]
    expected, embeddings = embed(module, held_out), embed(other, others)
    pool = causal_pool(module)
    form = with_depthwise_convs(with_one_token(module))

    def row(way: str, given: Tensor, **values: Value) -> Row:
        quality = TowerQuality.of(given, expected, embeddings)
        return Row(
            case={"int8": way}, values={**numbers(quality), **values}, notes={"gates": quality.refusal or "passed"}
        )

    def batches() -> Iterator[Tensor]:
        yield from torch.split(tuned_on[: spec.num_observed], _AT_ONCE)

    everywhere, places = PlacesSpec(grouped=True, outputs=True, most_float=0.0), PlacesSpec(most_float=spec.most_float)
    ends = everywhere.observed(module, batches, whole=True)
    yield row("all layers, from the least to the largest", embed(rounded(module, ends), held_out))
    yield row("all layers, least error", embed(rounded(module, everywhere.observed(module, batches)), held_out))
    ranges = places.observed(module, batches)
    yield row("inputs, but of grouped convolutions", embed(rounded(module, ranges), held_out))
    ranges = places.without_worst(module, ranges, checked, others=embeddings)
    yield row("without the worst", embed(rounded(module, ranges), held_out))
    tuning = Tuning(
        module,
        ranges,
        batches_of(tuned_on, batch_size=spec.batch_size, seed=spec.seed),
        TuningSpec(num_steps=spec.steps),
        checked=checked,
    )
    began = time.process_time()
    while not tuning.done:
        tuning.advance()
    seconds = (time.process_time() - began) / spec.steps
    made = with_rounded_weights(module, tuning.tower)
    kept = Value(number=len(layers_in_float32(made)), unit="layers")
    yield row("tuned", embed(tuning.tower, held_out), step=Value(number=seconds, unit="s"), float32=kept)
    carrying = with_depthwise_convs(with_one_token(made))
    observed, lengths = tuned_on[: spec.num_observed].contiguous(), pool is not None
    default, own = DefaultInt8(form, observed, lengths=lengths), TunedInt8Model(carrying, observed, lengths=lengths)
    for way, int8 in (("NNCF's default, OpenVINO", default), ("tuned, OpenVINO", own)):
        run = openvino_program(form, held_out[:1].clone(), lengths=lengths, precision="int8", int8=int8)
        yield row(way, torch.cat([run(one.contiguous()) for one in torch.split(held_out, 1)]))
    for size in spec.batch_sizes if spec.rounds else ():
        example = inputs[torch.arange(size) % len(inputs)].contiguous()
        yield from timed(form, example, {"NNCF's default": default, "tuned": own}, lengths=lengths, rounds=spec.rounds)


def timed(
    form: nn.Module, example: Tensor, in_int8: Mapping[str, Int8Model], *, lengths: bool, rounds: int
) -> Iterator[Row]:
    """Yield how long OpenVINO takes in each precision, called in turn."""
    runs: dict[str, Callable[[], tuple[float, float]]] = {}
    wide: dict[str, FastPrecision] = {"float32": "float32", "bfloat16": "bfloat16"}
    for way in (*wide, *in_int8):
        program = openvino_program(
            form, example, lengths=lengths, precision=wide.get(way, "int8"), int8=in_int8.get(way)
        )
        runs[way] = partial(turn, partial(program, example))
    taken = in_turn(runs, rounds=rounds_of(rounds, batch_size=len(example)))
    wide_ms = [one for _, one in taken["float32"]]
    for way, times in taken.items():
        wall, processor = (list(one) for one in zip(*times, strict=True))
        values = {"time": spread(wall, "ms"), "processor": spread([1e3 * one for one in processor], "ms")}
        case = {"int8": f"{way}, OpenVINO", "batch": str(len(example))}
        yield Row(case=case, values={**values, "of float32's": ratio(processor, wide_ms)})


def numbers(quality: TowerQuality) -> dict[str, Value]:
    """Return what a table has of a quality."""
    found = {"smallest cosine": quality.smallest_cosine, "mean cosine": quality.mean_cosine}
    values = {name: Value(number=number, unit="cosine") for name, number in found.items()}
    for name, one in (("finds", quality.finds), ("is found", quality.is_found)):
        if one is not None:
            low, high = one.interval
            values[name] = Value(number=one.same / one.total, low=low, high=high)
    return values


def embed(tower: nn.Module, inputs: Tensor) -> Tensor:
    """Return embeddings, a few at a time."""
    return torch.cat([tower(part) for part in torch.split(inputs, _AT_ONCE)])


def random_s0(seed: int) -> DualEncoder:
    """Return MobileCLIP-S0, folded, of random weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = random_model(PUBLISHED["s0"].spec())
    return reparameterize(model).requires_grad_(requires_grad=False)


def pictures(spec: QuantizationBenchSpec, model: DualEncoder) -> Tensor:
    """Return pictures as a model takes them, with channels innermost."""
    transform, count = ImageTransform(model.spec.image.input), spec.num_inputs + spec.num_held_out
    with TemporaryDirectory() as folder:
        places = spec.images or (folder,)
        if not spec.images:
            for number in range(count):
                data = photo(number, 320, quality=90, seed=spec.seed)
                (Path(folder) / f"{number:06d}.jpg").write_bytes(data)
        pixels = read_pictures(places, transform, count, seed=spec.seed, skipped=[])
    return transform.normalize(pixels).contiguous(memory_format=torch.channels_last)


def captions(spec: QuantizationBenchSpec, model: DualEncoder) -> Tensor:
    """Return texts as a model takes them."""
    count = spec.num_inputs + spec.num_held_out
    if spec.texts:
        texts = read_captions(spec.texts, count, seed=spec.seed, skipped=[])
    else:
        rng = seeded_rng(spec.seed, "words")
        texts = [
            " ".join(WORDS[int(one * len(WORDS))] for one in rng.random(3 + number % 12)) for number in range(count)
        ]
    return Tokenizer(model.spec.text.input)(texts)

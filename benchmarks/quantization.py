"""int8 in OpenVINO by NNCF, by default and in `optimize`: cosines, first results, and the acceptance checks.

Command:   python -m benchmarks quantization --models s0.safetensors --data DATA      (needs the extra `test`)
Hardware:  any CPU that OpenVINO supports; the benchmark measures accuracy, not time
Time:      a minute per tower of S0 on two cores
Result:    a table: smallest and mean cosine with float32, share of first results equal to float32, and the acceptance
           checks

A model is a name or a file. Every other input calibrates the ranges; the benchmark measures the other half. Like
`optimize`, the benchmark ranks images for texts, and texts for images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import ClassVar, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor

import mobileclip
from benchmarks.harness import Bench, Case, Row, Value, require
from benchmarks.inputs import read_captions, read_images
from benchmarks.runtime_forms import default_int8
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.encoders import DualEncoder
from mobileclip.inference.comparison import LEAST_COSINE, calibrations
from mobileclip.inference.forms import causal_pool, with_depthwise_convs, with_one_token
from mobileclip.inference.openvino_backend import int8_model, openvino_program

TowerName = Literal["image", "text"]


@attrs.frozen(kw_only=True)
class QuantizationBenchSpec(Bench):
    """Models and data of the comparison.

    Args:
        models: names or files.
        towers: towers to measure.
        data: images with captions, see `as_source`; by default the few of the package.
        num_inputs: number of images and of texts from the data.
        seed: seed of the choice of captions.
    """

    models: tuple[str, ...] = ("icons",)
    towers: tuple[TowerName, ...] = ("image", "text")
    data: tuple[str, ...] = ()
    num_inputs: int = attrs.field(default=256, validator=validators.ge(4))
    seed: int = 0

    smallest: ClassVar[Mapping[str, object]] = {"towers": ("text",)}
    selects: ClassVar[frozenset[str]] = frozenset(("models", "towers"))

    def cases(self) -> Iterator[Case]:
        """Yield every tower of every model."""
        require("openvino", "nncf")
        for model, tower in product(self.models, self.towers):
            yield Case(labels={"model": model, "tower": tower}, measure=partial(measure, self, model, tower))


@torch.no_grad()
def measure(spec: QuantizationBenchSpec, name: str, tower: TowerName) -> Iterator[Row]:
    """Yield the accuracy of a tower in int8."""
    model = mobileclip.load(name).model
    calibration = calibrations(model, inputs_of(spec, model) if spec.data else None)[tower == "text"]
    encoder = model.text_encoder if tower == "text" else model.image_encoder
    lengths = causal_pool(encoder) is not None
    form = with_depthwise_convs(with_one_token(encoder))
    rows, expected = torch.split(calibration.measured, 1), encoder(calibration.measured)
    for way, quantised in {"NNCF's default": default_int8, "but grouped convolutions": int8_model}.items():
        int8 = quantised(form, calibration.ranges.contiguous(), lengths=lengths)
        run = openvino_program(form, rows[0].clone(), lengths=lengths, precision="int8", int8=int8)
        given = torch.cat([run(row.contiguous()) for row in rows])
        cosines = torch.cosine_similarity(given.double(), expected.double())
        same = calibration.same_first(given, expected)
        refusal = calibration.refusal(given, expected)
        if cosines.min() < LEAST_COSINE["int8"]:
            refusal = f"the cosine is below {LEAST_COSINE['int8']}"
        values = {
            "smallest cosine": Value(number=float(cosines.min()), unit="cosine"),
            "mean cosine": Value(number=float(cosines.mean()), unit="cosine"),
            "same first results": Value(number=float(same.double().mean())),
            "of": Value(number=len(same)),
        }
        yield Row(case={"int8": way}, values=values, notes={"checks": refusal or "passed"})


def inputs_of(spec: QuantizationBenchSpec, model: DualEncoder) -> tuple[Tensor, Tensor]:
    """Return images and token ids from the spec's data."""
    transform = ImageTransform(model.spec.image.input)
    images = transform.normalize(read_images(spec.data, transform, spec.num_inputs))
    return images, Tokenizer(model.spec.text.input)(read_captions(spec.data, spec.num_inputs, seed=spec.seed))

"""The forms that a tower can compute in: how it is laid out, in which precision, compiled or not, how many at once."""

from __future__ import annotations

import copy
from typing import Literal, cast

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from mobileclip.data.images.transform import normalize_pixels
from mobileclip.encoders import ImageEncoderSpec, TextEncoderSpec
from mobileclip.encoders.towers import check_images, check_tokens
from mobileclip.hardware.precision import FastPrecision, dtype_of
from mobileclip.inference.forms import (
    PreparedTower,
    causal_pool,
    cut_behind_the_end,
    reads_text,
    with_depthwise_convs,
    with_one_token,
)
from mobileclip.inference.optimization.int8 import Calibration, Int8Model, TunedInt8Model
from mobileclip.inference.optimization.programs import Program, openvino_program
from mobileclip.inference.quantization import ranges_of_form

Engine = Literal["eager", "openvino"]


@attrs.frozen(kw_only=True)
class Form:
    """One way to compute a folded tower: engine, precision and batch size.

    Args:
        engine: what computes: PyTorch, or a program of OpenVINO.
        precision: of the weights and the features; embeddings come out in float32. In int8, of convolutions and linear
            layers: those that the tower carries ranges of, or all but grouped ones.
        most: images or texts computed at once; a larger batch goes in parts. What a few images need between two layers
            stays in a processor's cache.
    """

    engine: Engine
    precision: FastPrecision
    most: int

    def __str__(self) -> str:
        """Return what a report calls it."""
        return f"{self.engine} {self.precision}, {self.most} at once"


class OptimizedTower(PreparedTower):
    """A folded tower in one form, for batches of any size.

    Programs are made for one size of batch: what is left over at the end of a batch is computed eagerly (beside
    OpenVINO in float32), so that no call waits for a compiler. No gradients: embeddings are plain tensors, in float32.

    Shape:
        what the tower takes, or pixels in place of images, to `(batch, embedding_dim)`.

    Args:
        tower: folded, in float32, on the CPU; it is copied.
        form: how to compute.

    Raises:
        ValueError: if the inputs are not what the tower takes.
    """

    def __init__(self, tower: nn.Module, *, form: Form) -> None:
        super().__init__()
        self.form = form
        # OpenVINO takes float32, and rounds what it computes in less itself.
        self.dtype = torch.float32 if form.engine == "openvino" else dtype_of(form.precision)
        self.tower = copy.deepcopy(with_depthwise_convs(with_one_token(tower))).to(self.dtype)
        if not reads_text(tower):
            self.tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._pool = causal_pool(tower)
        self.eval()
        self._program: Program | None = None

    @property
    def spec(self) -> ImageEncoderSpec | TextEncoderSpec:
        """The spec of the tower."""
        return cast("ImageEncoderSpec | TextEncoderSpec", self.tower.spec)

    @property
    def takes_pixels(self) -> bool:
        """Whether pixels may come in place of images: those of an image tower may."""
        return isinstance(self.spec, ImageEncoderSpec)

    def int8_model(self, calibration: Calibration) -> Int8Model:
        """Return what programs in int8 are made of, whichever their batch.

        Args:
            calibration: inputs that ranges of values are found with, where the tower carries none.
        """
        lengths = self._pool is not None
        ranges = calibration.ranges if lengths else self._prepared(calibration.ranges)
        kind = TunedInt8Model if self.is_tuned else Int8Model
        return kind(self.tower, ranges, lengths=lengths)

    @property
    def is_tuned(self) -> bool:
        """Whether the tower carries ranges of int8."""
        return bool(ranges_of_form(self.tower))

    def compile_for(self, inputs: Tensor, *, int8: Int8Model | None = None) -> None:
        """Make the program for batches of `form.most`, if the form has one.

        Args:
            inputs: at least `form.most` images or texts.
            int8: what a program in int8 is made of.

        Raises:
            Exception: whatever the compiler raises, where there is none or it cannot compile the tower.
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            lengths = self._pool is not None
            # Where lengths differ, a batch as it comes has the longest that there may be.
            example = (inputs if lengths else self._prepared(inputs))[: self.form.most].clone()
            if self.form.engine == "openvino":
                spec = self.spec
                self._program = openvino_program(
                    self.tower,
                    example,
                    lengths=lengths,
                    precision=self.form.precision,
                    int8=int8,
                    pixels=spec.input if isinstance(spec, ImageEncoderSpec) else None,
                )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings, not normalised."""
        with torch.no_grad():
            prepared = self._prepared(inputs)
            parts = [self._encode(part) for part in torch.split(prepared, self.form.most)]
            return torch.cat(parts).float()

    def _prepared(self, inputs: Tensor) -> Tensor:
        """Return the checked inputs, laid out as the form computes."""
        spec = self.spec
        if isinstance(spec, TextEncoderSpec):
            check_tokens(inputs, spec.input)
            return inputs if self._pool is None else cut_behind_the_end(inputs, self._pool)
        check_images(inputs, spec.input)
        if inputs.dtype == torch.uint8:
            return inputs
        if self.form.engine == "openvino":
            # By NumPy: PyTorch's threads would go on waiting for work, in a loop, while OpenVINO's compute.
            return torch.from_numpy(np.ascontiguousarray(inputs.detach().float().numpy()))
        return inputs.to(self.dtype, memory_format=torch.channels_last)

    def _encode(self, part: Tensor) -> Tensor:
        if self._program is not None and len(part) == self.form.most:
            return self._program(part)
        spec = self.spec
        if isinstance(spec, ImageEncoderSpec) and part.dtype == torch.uint8:
            part = normalize_pixels(part, spec.input, memory_format=torch.channels_last).to(self.dtype)
        rest: Tensor = self.tower(part)
        return rest

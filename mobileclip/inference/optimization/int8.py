"""A tower in int8: quantised once for programs of any batch, and what it must show on inputs that it has not seen."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mobileclip.encoders import DualEncoder
from mobileclip.extras import needed
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference.comparison.measuring import first_results, least_agreement
from mobileclip.inference.comparison.samples import bundled_samples
from mobileclip.inference.layers import is_grouped, weighted_layers
from mobileclip.inference.optimization.openvino_quiet import openvino_model
from mobileclip.inference.quantization import ranges_of_form, with_int8_layers
from mobileclip.inputs import ImageInput, TextInput

_FEWEST, _FEW = 4, 16


@attrs.frozen(kw_only=True, eq=False)
class Calibration:
    """Inputs of a tower that ranges of values are found with, and others that it is measured on.

    Args:
        ranges: what the tower takes, a batch.
        measured: other inputs, a batch.
        others: embeddings of the other tower in float32, which are found by those of `measured` and find them; without
            them, the nearest other inputs of `measured` are looked for.
    """

    ranges: Tensor
    measured: Tensor
    others: Tensor | None = None

    @classmethod
    def of(cls, inputs: Tensor, others: Tensor | None = None) -> Calibration:
        """Return half of the inputs, every other one, for the ranges, and half to be measured on.

        Raises:
            ValueError: if there are fewer than four.
        """
        if len(inputs) < _FEWEST:
            raise ValueError(
                f"calibration has {len(inputs)} inputs of a tower, expected at least {_FEWEST}, of which half are for "
                "ranges and half are measured on; give more, or none for the pictures of the package"
            )
        return cls(ranges=inputs[::2], measured=inputs[1::2], others=others)

    @classmethod
    def of_package(cls, contract: ImageInput | TextInput, others: Tensor | None = None) -> Calibration:
        """Return crops of half of the package's pictures and the other half whole; or its captions, by halves."""
        from mobileclip.data.images.transform import ImageTransform
        from mobileclip.data.text.tokenizer import Tokenizer
        from mobileclip.inference.comparison.calibration import calibration_crops

        samples = bundled_samples()
        if isinstance(contract, TextInput):
            return cls.of(Tokenizer(contract)(samples.captions), others)
        transform = ImageTransform(contract)
        crops = calibration_crops(samples.images[::2], contract)
        whole = torch.stack([transform(data) for data in samples.images[1::2]])
        return cls(ranges=transform.normalize(crops.movedim(1, -1)), measured=whole, others=others)

    def refusal(self, embeddings: Tensor, expected: Tensor) -> str:
        """Return why a tower does not find what it should; nothing where it does.

        Args:
            embeddings: of `measured`.
            expected: the same in float32.
        """
        same = self._found_first(embeddings) == self._found_first(expected)
        agreement = float(same.double().mean())
        least = least_agreement(len(same))
        if agreement < least:
            return f"{agreement:.1%} of {len(same)} first results are as in float32, expected at least {least:.1%}"
        return ""

    def _found_first(self, embeddings: Tensor) -> Tensor:
        if self.others is None:
            return first_results(embeddings, embeddings)
        return torch.cat([first_results(embeddings, self.others), first_results(self.others, embeddings)])


class Int8Model:
    """A tower as OpenVINO's model in int8, but for grouped convolutions, which lose most and gain nothing.

    Args:
        tower: in evaluation mode, in float32.
        ranges: what ranges of values are found with, a batch.
        lengths: whether texts may be shorter.
    """

    rest: FastPrecision = "bfloat16"
    """What other operations may be computed in, where the processor does."""

    def __init__(self, tower: nn.Module, ranges: Tensor, *, lengths: bool) -> None:
        self._tower, self._ranges, self._lengths = tower, ranges, lengths

    @cached_property
    def model(self) -> Any:
        """The model, of batches of one.

        Raises:
            ImportError: if OpenVINO or its quantiser is not installed; the message has the command that installs them.
        """
        with needed("int8", "openvino"):
            from mobileclip.inference.optimization.openvino_int8 import in_int8

            model = openvino_model(self._tower, self._ranges[:_FEW], lengths=self._lengths, any_batch=True)
            model.reshape([1, *self._ranges.shape[1:]])
            kept = [name for name, layer in weighted_layers(self._tower) if is_grouped(layer)]
            return in_int8(model, self._tower, self._ranges, kept=kept)


class TunedInt8Model(Int8Model):
    """A tower as OpenVINO's model in int8 with the ranges that it carries, for all layers that have some.

    Args:
        tower: in evaluation mode, in float32; what `mobileclip quantize` wrote, or a form of it.
        ranges: inputs, a batch, of which the first are examples.
        lengths: whether texts may be shorter.
    """

    rest: FastPrecision = "float32"

    @cached_property
    def model(self) -> Any:
        """The model, of batches of one.

        Raises:
            ImportError: if OpenVINO is not installed; the message has the command that installs it.
        """
        form = with_int8_layers(self._tower, ranges_of_form(self._tower))
        with needed("int8", "openvino"):
            model = openvino_model(form, self._ranges[:_FEW], lengths=self._lengths, any_batch=True)
        model.reshape([1, *self._ranges.shape[1:]])
        return model


@torch.no_grad()
def calibrations(model: DualEncoder, given: tuple[Tensor, Tensor] | None) -> tuple[Calibration, Calibration]:
    """Return what the image tower and the text tower of a model are calibrated with and measured on.

    Args:
        model: in float32.
        given: images and tokenised texts; those of the package by default.

    Raises:
        ValueError: if there are fewer than four images or texts.
    """
    from mobileclip.data.images.transform import ImageTransform
    from mobileclip.data.text.tokenizer import Tokenizer

    if given is None:
        samples, transform = bundled_samples(), ImageTransform(model.spec.image.input)
        images = torch.stack([transform(data) for data in samples.images])
        tokens = Tokenizer(model.spec.text.input)(samples.captions)
    else:
        images, tokens = given
    image_embeddings, text_embeddings = model.image_encoder(images), model.text_encoder(tokens)
    if given is None:
        return (
            Calibration.of_package(model.spec.image.input, text_embeddings),
            Calibration.of_package(model.spec.text.input, image_embeddings),
        )
    return Calibration.of(images, text_embeddings), Calibration.of(tokens, image_embeddings)

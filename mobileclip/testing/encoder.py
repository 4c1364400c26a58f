"""Conformance tests of image and text encoders: checks that encoders can be saved, loaded, folded and exported."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.encoders import ImageEncoderSpec, TextEncoderSpec, load_model, save_model
from mobileclip.encoders.checkpoints.layouts import require_hashable, tensor_shapes
from mobileclip.encoders.checkpoints.saving import model_json, read_back_as
from mobileclip.reparam import reparameterize
from mobileclip.serialization import from_json
from mobileclip.testing.comparing import exported, relative_error, with_random_statistics

_MOST_ERROR = 1e-4


def check_encoder(spec: ImageEncoderSpec | TextEncoderSpec, *, export: bool = True) -> None:
    """Check that saving, loading, folding and exporting an encoder keeps its outputs, and that JSON keeps its spec.

    The function checks that the spec is frozen, hashable, equal after a JSON round trip, and registered in its family;
    that the encoder's `.spec` equals the spec; and that the embeddings have the spec's width, do not depend on other
    examples of the batch, and stay equal after saving and loading, reparameterization and `torch.export`.

    Args:
        spec: spec of the encoder; a small encoder is faster to check.
        export: whether to test `torch.export`, which takes seconds.

    Raises:
        AssertionError: if a check fails; the message names the problem and a remedy.

    Examples:
        >>> from mobileclip.testing import check_encoder
        >>> check_encoder(mobileclip.encoders.MCtSpec(width=16, depth=0, num_heads=2), export=False)
        >>> class ColourSpec(mobileclip.encoders.ImageEncoderSpec):
        ...     def build(self):
        ...         return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 512))
        >>> check_encoder(ColourSpec())
        Traceback (most recent call last):
        AssertionError: ColourSpec is not a registered image encoder family; register the class first
    """
    try:
        _check_spec(spec)
        tensor_shapes(spec, "training")
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            model = with_random_statistics(spec.build().eval())
        inputs = _inputs(spec)
        with torch.no_grad():
            expected = _check_outputs(spec, model, inputs)
            _check_round_trip(spec, model, inputs, expected)
            _check_equal(spec, "after folding", reparameterize(model)(inputs), expected)
            if export:
                program = exported(type(spec).__name__, model, (inputs,))
                _check_equal(spec, "after torch.export", program(inputs), expected)
    except ValueError as error:  # the library's own description
        raise AssertionError(str(error)) from error


def _check_spec(spec: ImageEncoderSpec | TextEncoderSpec) -> None:
    name = type(spec).__name__
    require_hashable(spec)
    has_kind = any(field.name == "kind" for field in attrs.fields(type(spec)))
    assert not has_kind, f"{name} has a field `kind`, but JSON uses this key for the registered name; rename the field"
    again = from_json(model_json(spec), read_back_as(spec))
    assert again == spec, f"{name} changes in a JSON round trip: got {again}, expected {spec}"


def _check_outputs(spec: ImageEncoderSpec | TextEncoderSpec, model: nn.Module, inputs: Tensor) -> Tensor:
    name = type(spec).__name__
    is_said = getattr(model, "spec", None) == spec
    assert is_said, f"the model from {name}.build() has no `.spec` equal to the spec; set `.spec` in its __init__"
    outputs = cast("Tensor", model(inputs))
    width = (len(inputs), spec.embedding_dim)
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    assert shape == width, (
        f"{name} returned {shape} for {len(inputs)} examples, expected (batch, embedding_dim): {width}"
    )
    alone = torch.cat([cast("Tensor", model(one[None])) for one in inputs])
    _check_equal(spec, "for single examples", alone, outputs)
    return outputs


def _check_round_trip(
    spec: ImageEncoderSpec | TextEncoderSpec, model: nn.Module, inputs: Tensor, expected: Tensor
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.safetensors"
        save_model(model, path)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(1)  # not the seed of the model, so that unsaved weights differ
            loaded = load_model(path, fold=False)
    assert loaded.spec == spec, f"the spec of {type(spec).__name__} changes after saving and loading: {loaded.spec}"
    _check_equal(spec, "after saving and loading", loaded(inputs), expected)


def _check_equal(spec: ImageEncoderSpec | TextEncoderSpec, how: str, found: Tensor, expected: Tensor) -> None:
    error = relative_error(found, expected)
    assert error <= _MOST_ERROR, (
        f"{type(spec).__name__} returned different embeddings {how}: the relative error is {error:.1e}, the limit "
        f"{_MOST_ERROR:.0e}"
    )


def _inputs(spec: ImageEncoderSpec | TextEncoderSpec) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(spec, ImageEncoderSpec):
        return torch.rand(2, 3, spec.input.size, spec.input.size, generator=generator)
    text = spec.input
    ids = torch.full((2, text.context_length), text.pad_id)
    for row, length in enumerate((text.context_length // 2, text.context_length - 1)):
        ids[row, :length] = torch.randint(1, max(2, text.vocab_size - 2), (length,), generator=generator)
        ids[row, length] = text.end_id
    return ids

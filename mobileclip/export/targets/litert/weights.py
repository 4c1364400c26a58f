"""Quantises the weights of LiteRT files by Google's quantiser."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from mobileclip.export.targets.litert.file import operations_of
from mobileclip.export.targets.native_stderr import kept_stderr
from mobileclip.export.towers.fallback import stored_layers
from mobileclip.export.towers.graph import TowerExport
from mobileclip.hardware.precision import Precision

_TABLE = "EMBEDDING_LOOKUP"
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", _TABLE)
"""Operations that are stored in fewer bits."""

Weight = npt.NDArray[Any]


def with_quantised_weights(model: bytes, tower: TowerExport) -> bytes:
    """Return a file whose convolutions, linear layers and tables are stored in lower precision; all else stays.

    - int8: layers are int8 already; tables have float16.
    - float16: weights are stored in it, and become float32 when the file is opened. A runtime on a GPU
      computes in float16 instead.
    - int8-weights: weights have 8 bits without a zero point, with a scale for each output channel, and for each row of
      a table. They become float32 too.

    Args:
        model: in float32, as the converter writes it.
        tower: its precision, and the layers that stay in float32.
    """
    layers = dict(_layers_of(model, stored_layers(tower.encoder)))
    missing = tower.float32 - {name for _, several in layers.values() for name in several}
    assert not missing, f"not found in the graph: {missing}"
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), kept_stderr():
        # Bars of the quantiser, notes of the runtime, and a warning of the memory that watching all values takes.
        warnings.simplefilter("ignore")
        from ai_edge_quantizer import quantizer, recipe_manager

        wanted = recipe_manager.RecipeManager()
        for output, (kind, several) in layers.items():
            if several - tower.float32:
                _ask(wanted, f"^{re.escape(output)};?$", kind, tower.spec.precision)
        if not wanted.get_quantization_recipe():
            return model
        made = quantizer.Quantizer(model, wanted.get_quantization_recipe())
        return bytes(made.quantize(enable_progress_report=False).quantized_model)


def _ask(wanted: Any, scope: str, kind: str, precision: Precision) -> None:
    """Ask the quantiser for an operation in the precision of the export.

    Args:
        wanted: what the quantiser is asked for.
        scope: a pattern of the operation's output alone.
        kind: of the operation.
        precision: of the export.
    """
    from ai_edge_quantizer import qtyping, quantizer

    operation = qtyping.TFLOperationName(kind)
    if precision == "int8-weights" and kind == _TABLE:
        # Rows become float32 when they are looked up, so the table stays small.
        wanted.add_dynamic_config(scope, operation, num_bits=8)
    elif precision == "int8-weights":
        wanted.add_weight_only_config(scope, operation, num_bits=8)
    else:
        as_floats = quantizer.AlgorithmName.FLOAT_CASTING
        wanted.add_weight_only_config(scope, operation, num_bits=16, algorithm_key=as_floats)


def _layers_of(model: bytes, layers: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, tuple[str, set[str]]]]:
    """Yield the output, the kind and the layers that each operation may be: those that have its weight.

    The conversion moves the axes of a weight, and multiplies a linear layer's by the scales of a norm in front of it.
    """
    weights = {name: cast("Tensor", layer.weight).detach().numpy() for name, layer in layers}
    known: dict[bytes, set[str]] = {}
    for name, weight in weights.items():
        for form in _forms(weight):
            known.setdefault(form.tobytes(), set()).add(name)
    for operation in operations_of(model):
        found = operation.weight
        if operation.kind in WEIGHTED and found is not None:
            names = known.get(found.tobytes()) or {name for name, one in weights.items() if _is_scaled(found, one)}
            if names:
                yield operation.output, (operation.kind, names)


def _forms(weight: Weight) -> tuple[Weight, ...]:
    """Return a weight as LiteRT may have it: of a convolution, by output channel last in or of a depthwise one."""
    if weight.ndim == 2:
        return (weight,)
    return tuple(np.ascontiguousarray(weight.transpose(axes)) for axes in ((0, 2, 3, 1), (1, 2, 3, 0)))


def _is_scaled(found: Weight, weight: Weight) -> bool:
    """Return whether a linear layer's weight is another's, but for a factor of each input."""
    if found.ndim != 2 or found.shape != weight.shape:
        return False
    # The row that says most of each factor, so that no division by almost nothing decides.
    largest = np.abs(weight).argmax(0), np.arange(weight.shape[1])
    return bool(np.allclose(found * weight[largest], weight * found[largest], rtol=1e-4, atol=1e-6))

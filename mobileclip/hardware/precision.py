"""Names of the precisions (number formats) that models are stored and computed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "float16", "bfloat16", "int8", "int8-weights"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Precisions of an exported model; `int8-weights` stores weights in int8 and computes in float32."""

WidePrecision = Literal["float32", "bfloat16"]
WIDE_PRECISIONS: tuple[WidePrecision, ...] = get_args(WidePrecision)
"""Precisions in which PyTorch runs models and teachers; both have the range of float32."""

TrainingPrecision = Literal[WidePrecision, "float16"]
TRAINING_PRECISIONS: tuple[TrainingPrecision, ...] = get_args(TrainingPrecision)
"""Precisions of a training step under autocast."""

FastPrecision = Literal["float32", "bfloat16", "int8"]
FAST_PRECISIONS: tuple[FastPrecision, ...] = get_args(FastPrecision)
"""Precisions that `optimize` may use where they are exact enough; int8 in convolutions and linear layers only."""

StoredPrecision = Literal["bfloat16", "int8"]
"""Precisions of the embeddings stored in compact records."""


def dtype_of(precision: Precision | TrainingPrecision) -> torch.dtype:
    """Return the type of a floating-point precision: float32, float16 or bfloat16.

    Casting weights to bfloat16 is as exact as autocast and keeps half the bytes: with ViT-B/32 both are within 8e-5
    (1 - cosine) of float32. It pays on GPUs, and on processors that compute in bfloat16; with AVX2 alone, float32 is
    five times as fast.

    Raises:
        KeyError: if it is none of these.
    """
    import torch

    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision]

"""Reduces a model for a page of a few megabytes: fewer dimensions, in int8, and text towers with tokens in int8."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mobileclip import ImageTextModel
from mobileclip.encoders.text import TextEncoder, TextTransformerSpec

_LEVELS = 127
_FOUND_IN = 5


@attrs.frozen(kw_only=True, eq=False)
class Reduced:
    """Image embeddings in few dimensions, and the projection of text embeddings; scores keep their order.

    Shape:
        vectors: (images, dims), int8.
        matrix: (dims, embedding_dim).
    """

    vectors: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, images: Tensor, dims: int) -> Reduced:
        """Return the principal components of embeddings.

        The function does not subtract the mean, which would change all products with a text by the same amount.

        Shape:
            images: (images, embedding_dim).
        """
        centred = images - images.mean(dim=0)
        components = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -dims:].flip(1).T
        values = centred @ components.T
        vectors, scales = _rounded(values, dim=0)
        return cls(vectors=vectors, matrix=components * scales[:, None])


def recall(queries: Tensor, images: Tensor, wanted: Sequence[str], names: Sequence[str]) -> float:
    """Return R@5: the share of queries with a drawing of the queried name among the first five, in per cent.

    Shape:
        queries: (queries, dim).
        images: (images, dim).
    """
    found = (queries @ images.T).topk(min(_FOUND_IN, len(names))).indices.tolist()
    hits = [name in {names[one] for one in row} for row, name in zip(found, wanted, strict=True)]
    return 100 * sum(hits) / len(hits)


@torch.no_grad()
def with_rounded_tokens(clip: ImageTextModel) -> ImageTextModel:
    """Round the token embeddings of a model's text towers, in place, to the values on the page."""
    for side in clip.text_sides:
        table = side.model.get_submodule("text_encoder.token_embedding").get_parameter("weight")
        levels, scales = _rounded(table, dim=1)
        table.copy_(levels * scales[:, None])
    return clip


def _rounded(values: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """Return a matrix in int8, and the scales of its rows (`dim` 1) or columns (`dim` 0)."""
    scales = values.abs().amax(dim=dim, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny) / _LEVELS
    return (values / scales).round().to(torch.int8), scales.flatten()


def pack_towers(clip: ImageTextModel, matrix: Tensor) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Return the contracts of a model's text towers, and their tensors by names that begin with the tower's number.

    Raises:
        ValueError: if the page does not support a tower.
    """
    contracts, tensors = [], {}
    for number, side in enumerate(clip.text_sides):
        encoder = side.model.text_encoder
        spec = getattr(encoder, "spec", None)
        if not isinstance(encoder, TextEncoder) or not isinstance(spec, TextTransformerSpec) or spec.causal:
            raise ValueError(
                f"the page only supports transformers with attention to all tokens, but the tower is {spec}"
            )
        text = spec.input
        contracts.append(
            {
                "contract": {
                    "contextLength": text.context_length,
                    "padId": text.pad_id,
                    "startId": text.start_id,
                    "endId": text.end_id,
                },
                "tokenizer": json.loads(side.tokenizer.to_json()),
                "heads": spec.num_heads,
                "depth": spec.depth,
                "pool": spec.pool,
            }
        )
        for name, tensor in _tensors(encoder, matrix):
            # At least one row, since the page reads tensors by rows.
            tensors[f"{number}.{name}"] = torch.atleast_2d(tensor.detach()).contiguous()  # type: ignore[no-untyped-call]
    return contracts, tensors


def _tensors(encoder: TextEncoder, matrix: Tensor) -> Iterator[tuple[str, Tensor]]:
    levels, scales = _rounded(encoder.token_embedding.weight.detach(), dim=1)
    yield "tokens", levels
    yield "scales", scales
    yield "position", encoder.position
    yield "project", matrix @ encoder.project.weight.detach()
    packed = getattr(encoder, "provenance").ngrams  # noqa: B009  checkpoints put it there
    if packed is None:
        raise ValueError(
            "a text tower does not list its known n-grams, but the page selects the tower that knows more n-grams"
        )
    yield "ngrams", packed
    modules: dict[str, nn.Module] = {"norm": encoder.norm}
    for number, layer in enumerate(encoder.layers):
        inner = dict(layer.named_modules())
        paths = ("attention_norm", "attention.qkv", "attention.project", "ffn_norm", "ffn.fc1", "ffn.fc2")
        modules |= {f"{number}.{path.split('.')[-1]}": inner[path] for path in paths}
    for name, module in modules.items():
        for kind, value in module.named_parameters(recurse=False):
            yield f"{name}.{kind}", value

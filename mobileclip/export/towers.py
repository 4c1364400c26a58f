"""The graph of one exported tower: preprocessing, encoder and normalisation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.blocks import Attention, EndTokenPool
from mobileclip.encoders import ClassifierSpec, ImageEncoderSpec, TextEncoderSpec
from mobileclip.encoders.towers import feature_encoder, local_encoder
from mobileclip.export.contract import feature_name
from mobileclip.export.layouts import Layout, layouts
from mobileclip.export.spec import TEXT_SPACE, ExportSpec, InputDtype, Stage, TextDtype, Tower
from mobileclip.inference.forms import Attend, SingleQueryAttention, causal_mask, causal_pool, fused_attention
from mobileclip.inputs import MAX_SIZE, ImageInput, TextInput

_LARGEST_PIXEL = 255


def input_of(encoder: nn.Module) -> ImageInput | TextInput:
    """Return the image or text input of a tower or a classifier.

    Args:
        encoder: image tower, text tower or classifier, with the attribute `spec`.
    """
    spec = cast("ImageEncoderSpec | TextEncoderSpec | ClassifierSpec", encoder.spec)
    return spec.image.input if isinstance(spec, ClassifierSpec) else spec.input


class ImageGraph(nn.Module):
    """Optionally resize, scale and normalise pixels, encode them, and optionally normalise the embeddings.

    Shape:
        `(batch, 3, size, size)`, or any height and width if the file resizes, to `(batch, embedding_dim)`, float32;
        with feature maps, to a tuple of the embeddings and, for each map, `(batch, channels, rows, columns)`, float32.

    Args:
        encoder: a folded image tower, or a folded classifier with logits in place of embeddings.
        spec: options of the export.
        dtype: type in which the encoder computes.
        float32: names of the encoder's layers that still compute in float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, *, spec: ExportSpec, dtype: torch.dtype, float32: frozenset[str]) -> None:
        super().__init__()
        contract = cast("ImageInput", input_of(encoder))
        self.encoder = copy.deepcopy(encoder).to(dtype)
        keep_in_float32(self.encoder, float32)
        self.dtype, self.raw, self.unit_length = dtype, spec.preprocess != "host", spec.normalize
        self.resize_to = contract if spec.preprocess == "picture" else None
        self.stages = spec.features
        self.register_buffer("mean", torch.tensor(contract.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(contract.std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the embeddings, followed by the requested feature maps."""
        if self.resize_to is not None:
            pixels = resized(pixels, self.resize_to)
        if self.raw:
            # In float32, like the library's own transform.
            pixels = (pixels.to(torch.float32) / _LARGEST_PIXEL - self.mean) / self.std
        pixels = pixels.to(self.dtype)
        if not self.stages:
            return _finished(self.encoder(pixels), unit_length=self.unit_length)
        embeddings, *maps = embedding_and_maps(self.encoder, pixels, self.stages, unit_length=self.unit_length)
        return (_finished(embeddings, unit_length=self.unit_length), *maps)


class TextGraph(nn.Module):
    """Encode token ids, after restoring an end token that the host cut off; optionally normalise the embeddings.

    Shape:
        integers `(batch, context_length)`, or shorter rows for a causal tower, to `(batch, embedding_dim)`, float32.

    Args:
        encoder: a folded text tower.
        spec: options of the export.
        dtype: type in which the encoder computes.
        float32: names of the encoder's layers that still compute in float32.
    """

    def __init__(self, encoder: nn.Module, *, spec: ExportSpec, dtype: torch.dtype, float32: frozenset[str]) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).to(dtype)
        keep_in_float32(self.encoder, float32)
        set_attention(self.encoder, fused_attention)
        self.unit_length = spec.normalize
        self.end_id = cast("TextInput", input_of(encoder)).end_id if layouts.resolve(spec.layout).cuts_end else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings."""
        if self.end_id is not None:
            tokens = ensure_end_token(tokens, self.end_id)
        return _finished(self.encoder(tokens), unit_length=self.unit_length)


def keep_in_float32(encoder: nn.Module, layers: frozenset[str]) -> None:
    """Turn layers of a half-precision tower back into float32 layers, in place.

    Each layer casts its inputs to its own type. Thus values beyond the range of float16 pass unchanged from one float32
    layer to the next, and operations between the layers compute in the wider type.
    """
    if not layers:
        return
    for name, module in encoder.named_modules():
        parameter = next(module.parameters(recurse=False), None)
        if parameter is None or not isinstance(module, (nn.Conv2d, nn.Linear, nn.LayerNorm)):
            continue
        if name in layers:
            module.float()
        module.register_forward_pre_hook(_in_its_type)


def _in_its_type(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weight = cast("Tensor", module.weight)
    return tuple(tensor.to(weight.dtype) for tensor in inputs)


def ensure_end_token(tokens: Tensor, end_id: int) -> Tensor:
    """Replace the last id by the end token in each row that has no end token."""
    last, end = tokens[:, -1:], torch.full_like(tokens[:, -1:], end_id)
    has_end = (tokens == end_id).any(dim=1, keepdim=True)
    return torch.cat([tokens[:, :-1], torch.where(has_end, last, end)], dim=1)


def embedding_and_maps(
    encoder: nn.Module, images: Tensor, stages: tuple[Stage, ...], *, unit_length: bool
) -> tuple[Tensor, ...]:
    """Return the embeddings of images, followed by one float32 feature map per stage.

    Args:
        encoder: an image tower.
        images: preprocessed images.
        stages: stages of the feature maps, at least one. With `text-space`, the embeddings are the means over positions
            in text space instead of the outputs of the head.
        unit_length: whether to scale the text-space map so that the mean over positions has unit length.
    """
    numbers = [stage for stage in stages if isinstance(stage, int)]
    maps: dict[Stage, Tensor] = {}
    if numbers:
        embeddings, found = feature_encoder(encoder).embedding_and_features(images, numbers)
        maps = {stage: one.to(torch.float32) for stage, one in zip(numbers, found, strict=True)}
    if TEXT_SPACE in stages:
        local = local_encoder(encoder).local_embeddings(images).to(torch.float32)
        embeddings = local.mean((2, 3))
        maps[TEXT_SPACE] = local / embeddings.norm(dim=1)[:, None, None, None] if unit_length else local
    return (embeddings, *(maps[stage] for stage in stages))


def _finished(embeddings: Tensor, *, unit_length: bool) -> Tensor:
    # Compute lengths in float32, because half precision cannot represent the squares of large values.
    embeddings = embeddings.to(torch.float32)
    return F.normalize(embeddings, dim=-1) if unit_length else embeddings


@attrs.frozen(kw_only=True, eq=False)
class TowerExport:
    """One tower to export, with the export options and the metadata.

    Args:
        tower: name of the tower.
        encoder: folded encoder in float32 and evaluation mode; for a classifier, the whole classifier as the image
            tower.
        spec: options of the export.
        calibration: a batch of inputs in the file's input format, for finding the int8 ranges; empty if the precision
            needs no ranges.
        text_dtype: dtype of the token ids.
        lengths: text lengths that the file accepts, with the context length last; empty for the context length alone.
        float32: names of the layers that stay in float32, without the prefix `encoder.` of the graph.
        model: model name for layouts with `{model}` in file names.
        notes: metadata for the file, if its format stores metadata: name, author, licence and contract.
    """

    tower: Tower
    encoder: nn.Module
    spec: ExportSpec
    calibration: Tensor
    text_dtype: TextDtype = "int64"
    lengths: tuple[int, ...] = ()
    float32: frozenset[str] = frozenset()
    model: str = "mobileclip"
    notes: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def layout(self) -> Layout:
        """The export layout named in the spec."""
        return layouts.resolve(self.spec.layout)

    @property
    def input(self) -> ImageInput | TextInput:
        """Image or text input of the encoder."""
        return input_of(self.encoder)

    @property
    def output_dim(self) -> int:
        """Number of outputs per input: number of classes, or width of the embeddings."""
        spec = cast("ImageEncoderSpec | TextEncoderSpec | ClassifierSpec", self.encoder.spec)
        return spec.num_classes if isinstance(spec, ClassifierSpec) else spec.embedding_dim

    @property
    def stem(self) -> str:
        """Path of the file in the export folder, without the target's suffix."""
        stem = self.layout.names[self.tower].stem.format(model=self.model)
        return f"{stem}{self.layout.endings[self.spec.precision]}"

    @property
    def input_name(self) -> str:
        """Name of the file's input in the layout."""
        return self.layout.names[self.tower].input

    @property
    def output_name(self) -> str:
        """Name of the first output: logits for a classifier, embeddings otherwise."""
        if isinstance(self.encoder.spec, ClassifierSpec):
            return "logits"
        return self.layout.names[self.tower].output

    @property
    def output_names(self) -> list[str]:
        """Names of all outputs, in the order of the file's outputs."""
        return [self.output_name, *map(feature_name, self.stages)]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages whose feature maps the file returns after the embeddings."""
        return self.spec.features if self.tower == "image" else ()

    @property
    def input_dtype(self) -> InputDtype:
        """Dtype of the file's input."""
        if self.tower == "text":
            return self.text_dtype
        return "uint8" if self.spec.preprocess in ("uint8", "picture") else "float32"

    @property
    def takes_any_size(self) -> bool:
        """Whether the file accepts decoded images of any size."""
        return self.tower == "image" and self.spec.preprocess == "picture"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input without the batch; the model's image size also stands for images of any size."""
        taken = self.input
        return (3, taken.size, taken.size) if isinstance(taken, ImageInput) else (taken.context_length,)

    def graph(self, dtype: torch.dtype) -> nn.Module:
        """Return the module to export, which computes in `dtype`; the encoder itself is not changed."""
        kind = ImageGraph if self.tower == "image" else TextGraph
        float32 = frozenset[str]() if dtype == torch.float32 else self.float32
        graph = kind(self.encoder, spec=self.spec, dtype=dtype, float32=float32)
        return graph.eval().requires_grad_(requires_grad=False)

    def program_of(self, graph: nn.Module, *, largest_batch: int | None = None) -> torch.export.ExportedProgram:
        """Export a module with torch.export; the module must have the same inputs and outputs as the result of `graph`.

        Args:
            graph: result of `graph`, possibly quantised or otherwise modified.
            largest_batch: upper limit of a dynamic batch, for runtimes that plan their memory; None for no limit.
        """
        # torch.export would treat a dynamic batch of size 1 as a constant.
        batch = 2 if self.spec.dynamic_batch else 1
        example = torch.zeros(batch, *self.input_shape, dtype=getattr(torch, self.input_dtype))
        sides = {0: torch.export.Dim("batch", max=largest_batch)} if self.spec.dynamic_batch else {}
        if self.takes_any_size:
            sides |= image_sides()
        if self.lengths:
            sides |= {1: torch.export.Dim("tokens", min=SHORTEST, max=self.lengths[-1])}
        return torch.export.export(graph, (example,), dynamic_shapes=(sides,) if sides else None, strict=False)


def written_out_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Compute attention like `fused_attention`, but with matrix products and a softmax.

    PyTorch's own attention checks for fully masked rows, which never occur here, with operations that some runtimes
    lack.
    """
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    attended: Tensor = (logits if mask is None else logits + mask).softmax(-1) @ value
    return attended


def set_attention(graph: nn.Module, attend: Attend) -> None:
    """Make all attention modules of a graph compute with the function `attend`."""
    for module in graph.modules():
        if isinstance(module, Attention):
            module.backend = _Masked(attend=attend)
        elif isinstance(module, SingleQueryAttention):
            module.attend = attend


@attrs.frozen(kw_only=True)
class _Masked:
    """An attention backend that passes an explicit mask."""

    attend: Attend

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
        """Return the attended values."""
        if not causal:
            return self.attend(query, key, value, None)
        return self.attend(query, key, value, causal_mask(query.shape[-2], query))


_SHORTER = (8, 16, 32)
SHORTEST = 3
"""Minimum of a dynamic token axis: torch.export treats a size of 1 as a constant, even for a slice without the last
token."""


def lengths_of(encoder: nn.Module, text: TextInput) -> tuple[int, ...]:
    """Return the row lengths at which a text tower gives equal embeddings, with the context length last.

    In a causal tower, no token attends to the padding after the text. In all other towers, tokens attend to the
    padding, so a shorter row would change the embedding; for such a tower, the result is empty.

    Args:
        encoder: encoder in its exported form.
        text: input of the encoder.
    """
    shorter = tuple(length for length in _SHORTER if length < text.context_length)
    return (*shorter, text.context_length) if shorter and causal_pool(encoder) is not None else ()


def cut_to_length(tokens: Tensor, lengths: Sequence[int], text: TextInput) -> Tensor:
    """Truncate a batch to the shortest length that fits its texts; without lengths, return the batch unchanged.

    Shape:
        `(batch, context_length)` to `(batch, one of lengths)`.

    Args:
        tokens: token ids from the tower's own tokenizer.
        lengths: row lengths that a file accepts, ascending, with the context length last; empty for no truncation.
        text: input of the tower.
    """
    if not lengths or not len(tokens):
        return tokens
    needed = int(EndTokenPool(end_id=text.pooled_id).position(tokens).max()) + 1
    return tokens[:, : next(length for length in lengths if length >= needed)].contiguous()


def image_sides() -> dict[int, torch.export.Dim]:
    """Return the dynamic axes of images; the minimum is 2, because torch.export treats a size of 1 as a constant."""
    return {axis: torch.export.Dim(name, min=2, max=MAX_SIZE) for axis, name in ((2, "height"), (3, "width"))}


def resized(pixels: Tensor, image: ImageInput) -> Tensor:
    """Resize the shorter side of images to the model's size, antialiased, and crop the centre.

    Shape:
        `(batch, 3, height, width)`, uint8 -> `(batch, 3, size, size)`, float32, whole numbers in [0, 255].

    Args:
        pixels: pixels of images of the same size.
        image: image preprocessing of the model.

    Source: `ImageTransform`, which resizes with Pillow: first the width, then the height, with rounding after each.
    Differs: the resampling weights are float32 here, but have 22 bits in Pillow, so that a pixel may differ by one of
    255 levels.
    """
    size, (own_height, own_width) = image.size, pixels.shape[-2:]
    height, width = (
        torch.sym_max(size, size * one // other)  # type: ignore[no-untyped-call]
        for one, other in ((own_height, own_width), (own_width, own_height))
    )
    values = pixels.to(torch.float32)
    for sides in ((own_height, width), (height, width)):
        values = F.interpolate(values, size=sides, mode=image.interpolation, antialias=True)
        values = values.round().clamp(0, _LARGEST_PIXEL)
    return values.narrow(2, _margin(height - size), size).narrow(3, _margin(width - size), size)


def _margin(rest: int) -> int:
    """Return half of the excess length, rounded half to even like Python's `round`."""
    half = rest // 2
    return half + (rest - 2 * half) * (half - 2 * (half // 2))

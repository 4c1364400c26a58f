"""Inputs and reference outputs for the measurement of an export, stored in the export folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.transform import ImageTransform
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.encoders import Classifier, DualEncoder, ImageEncoderSpec, ModelSpec, TextEncoderSpec
from mobileclip.encoders.checkpoints.layouts import towers
from mobileclip.export.contract import EVALUATION, GOLDEN, Contract, FeatureMap, feature_name, prepare_pixels
from mobileclip.export.spec import TEXT_SPACE, Stage, Tower
from mobileclip.export.towers import embedding_and_maps, input_of
from mobileclip.inference.comparison import Samples
from mobileclip.inputs import ImageInput
from mobileclip.tensor_files import read_tensors

_BATCH = 16
# A few inputs in the exact form of the files, for hosts that check their results.
_NUM_GOLDEN = 4
_FEWEST = 2
NUM_MAPPED = 12
"""Maximum number of images with feature maps in the comparison."""


@attrs.frozen(kw_only=True, eq=False)
class Outputs:
    """Float32 outputs of a model's tower, or of its exported file, for the inputs that measure the export.

    Shape:
        embeddings: `(images or captions, embedding_dim)`.
        features: `(images, channels, rows, columns)` of each stage.

    Args:
        embeddings: embeddings of all inputs, of unit length if the export normalises.
        features: feature maps by stage, only for the first `NUM_MAPPED` inputs, because maps are large.
    """

    embeddings: Tensor
    features: Mapping[Stage, Tensor] = attrs.field(factory=dict)

    @classmethod
    def of_batches(cls, batches: Iterable[tuple[Tensor, ...]], stages: Sequence[Stage]) -> Outputs:
        """Concatenate the outputs of several batches.

        Args:
            batches: for each batch, the embeddings and then one feature map per stage.
            stages: stages of the feature maps, in the order of the maps in a batch.
        """
        embeddings: list[Tensor] = []
        kept: list[list[Tensor]] = [[] for _ in stages]
        for rows, *maps in batches:
            room = max(0, NUM_MAPPED - sum(len(one) for one in embeddings))
            embeddings.append(rows)
            for several, one in zip(kept, maps, strict=True):
                several.append(one[:room])
        features = {stage: torch.cat(several) for stage, several in zip(stages, kept, strict=True)}
        return cls(embeddings=torch.cat(embeddings), features=features)


@attrs.frozen(kw_only=True, eq=False)
class Measured:
    """Inputs and reference outputs of the towers of a model.

    Shape:
        pixels: `(images, 3, size, size)`, uint8, resized and cropped.
        tokens: `(captions, context_length)`, int64.

    Args:
        inputs: uint8 pixels or token ids, by tower.
        reference: outputs of the float32 model, by tower.
        image_names: names of the usable images, in the order of the inputs; empty for a text tower alone.
        captions: captions, in the order of the inputs; empty for an image tower alone.
        skipped: number of unusable images for each reason.
        of_classes: whether the model is a classifier, so that the outputs are logits instead of embeddings.
    """

    inputs: Mapping[Tower, Tensor]
    reference: Mapping[Tower, Outputs]
    image_names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    skipped: Mapping[str, int] = attrs.field(factory=dict)
    of_classes: bool = False

    def encoder_inputs(self, tower: Tower, encoder: nn.Module) -> Tensor:
        """Return a batch of inputs of the encoder: normalised images, or token ids."""
        few = self.inputs[tower][:_BATCH]
        contract = input_of(encoder)
        return prepare_pixels(few, contract, "host") if isinstance(contract, ImageInput) else few

    def write(self, folder: Path, contract: Contract) -> None:
        """Write all inputs and outputs to the export folder, and a few golden inputs in the files' input format."""
        from safetensors.torch import save

        tensors = {f"{tower}.input": tensor.contiguous() for tower, tensor in self.inputs.items()}
        for tower, outputs in self.reference.items():
            tensors[_stored_name(tower, contract)] = outputs.embeddings.contiguous()
            tensors |= {f"{tower}.{feature_name(stage)}": maps.contiguous() for stage, maps in outputs.features.items()}
        (folder / EVALUATION).write_bytes(save(tensors))
        golden = {}
        names = [name for file in contract.towers for name in file.outputs]
        for file in contract.towers:
            outputs = self.reference[file.tower]
            golden[file.input_name] = contract.prepare_inputs(file, self.inputs[file.tower][:_NUM_GOLDEN]).contiguous()
            # If both towers have the same output name, the name of the tower comes first.
            own = file.output_name if names.count(file.output_name) == 1 else f"{file.tower}.{file.output_name}"
            golden[own] = outputs.embeddings[:_NUM_GOLDEN].contiguous()
            golden |= {one.name: outputs.features[one.stage][:_NUM_GOLDEN].contiguous() for one in file.features}
        (folder / GOLDEN).write_bytes(save(golden))


def _stored_name(tower: Tower, contract: Contract) -> str:
    """Return the tensor name of a tower's reference embeddings or logits in the file of test inputs."""
    return f"{tower}.{'logits' if contract.of_classes else 'embedding'}"


def measure_model(model: nn.Module, samples: Samples, *, normalize: bool, stages: tuple[Stage, ...] = ()) -> Measured:
    """Compute the inputs and reference outputs for the comparison with an export.

    Args:
        model: folded model, in float32.
        samples: images and captions; the function skips and counts unreadable images.
        normalize: whether to scale embeddings to unit length.
        stages: stages of the image tower that also return feature maps for the comparison.

    Raises:
        ValueError: if fewer than two images are usable, if the model returns embeddings with NaN, infinity or length
            zero, or if the model lacks one of the stages.
    """
    inputs: dict[Tower, Tensor] = {}
    reference: dict[Tower, Outputs] = {}
    names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    skipped: Counter[str] = Counter()
    for tower, encoder in towers_of(model).items():
        if tower == "image":
            contract = cast("ImageInput", input_of(encoder))
            pixels, names, skipped = _read_images(samples, contract)
            inputs[tower], taken = pixels, prepare_pixels(pixels, contract, "host")
        else:
            captions = samples.captions
            inputs[tower] = taken = Tokenizer(cast("TextEncoderSpec", encoder.spec).input)(captions)
        asked = stages if tower == "image" else ()
        reference[tower] = Outputs.of_batches(_encoded(encoder, taken, asked, normalize=normalize), asked)
        check_reference(tower, reference[tower])
    return Measured(
        inputs=inputs,
        reference=reference,
        image_names=names,
        captions=captions,
        skipped=dict(skipped),
        of_classes=isinstance(model, Classifier),
    )


def check_reference(tower: Tower, outputs: Outputs) -> None:
    """Raise an error if the outputs of a float32 model cannot serve as a reference for an export.

    Raises:
        ValueError: if there are fewer than two outputs, or an output has NaN, infinity or length zero.
    """
    _check_vectors(tower, "embedding", outputs.embeddings)
    for stage, maps in outputs.features.items():
        _check_vectors(tower, f"stage {stage} map", maps.flatten(1))


def _check_vectors(tower: Tower, kind: str, embeddings: Tensor) -> None:
    if len(embeddings) < _FEWEST:
        raise ValueError(f"the {tower} tower has {len(embeddings)} reference {kind}s, expected at least two")
    lengths = embeddings.norm(dim=1)
    wrong = int((~(lengths.isfinite() & (lengths > 0))).sum())
    if wrong:
        raise ValueError(
            f"the {tower} tower itself gives {kind}s with NaN, infinity or zero in float32, for {wrong} of "
            f"{len(embeddings)} inputs; check its weights"
        )


def read_measured(folder: Path, contract: Contract) -> Measured:
    """Read the inputs and reference outputs in the folder of an export.

    Raises:
        ValueError: if the contract does not list the file of test inputs, or the file does not match the contract.
    """
    path = folder / EVALUATION
    if EVALUATION not in contract.files:
        raise ValueError(
            f"the contract in {folder} does not list {EVALUATION}, the file of test inputs; export the model again"
        )
    tensors, _ = read_tensors(path)
    inputs: dict[Tower, Tensor] = {}
    reference: dict[Tower, Outputs] = {}
    files = {file.tower: file for file in contract.towers}
    kinds: tuple[Tower, ...] = ("image", "text")
    try:
        for tower in kinds:
            name, width, count = _stored_name(tower, contract), (contract.output_dim,), None
            features: tuple[FeatureMap, ...] = ()
            if (file := files.get(tower)) is not None:
                inputs[tower] = _stored_inputs(tensors, tower, contract)
                count, features = len(inputs[tower]), file.features
            elif name not in tensors:
                continue
            rows = _stored(tensors, name, torch.float32, width, count)
            few = min(NUM_MAPPED, len(rows))
            maps = {
                one.stage: _stored(tensors, f"{tower}.{one.name}", torch.float32, one.shape[1:], few)
                for one in features
            }
            reference[tower] = Outputs(embeddings=rows, features=maps)
            check_reference(tower, reference[tower])
    except ValueError as error:
        raise ValueError(f"{path} does not match its contract: {error}; export the model again") from error
    return Measured(inputs=inputs, reference=reference, of_classes=contract.of_classes)


def _stored_inputs(tensors: Mapping[str, Tensor], tower: Tower, contract: Contract) -> Tensor:
    """Return the stored inputs of an exported tower: pixels or token ids."""
    if contract.image is not None and tower == "image":
        size = contract.image.input.size
        return _stored(tensors, "image.input", torch.uint8, (3, size, size))
    assert contract.text is not None, "expected a text contract for a text tower"
    text = contract.text.input
    ids = _stored(tensors, "text.input", torch.int64, (text.context_length,))
    if not bool(((ids >= 0) & (ids < text.vocab_size)).all()):
        raise ValueError(f"text.input contains ids outside the vocabulary of {text.vocab_size}")
    return ids


def _stored(
    tensors: Mapping[str, Tensor],
    name: str,
    dtype: torch.dtype,
    shape: tuple[int | None, ...],
    count: int | None = None,
) -> Tensor:
    """Return a stored tensor after a check of dtype, row shape and number of rows (`count`; None for any number)."""
    tensor = tensors.get(name, torch.empty(0))
    if tensor.dtype != dtype or tensor.shape[1:] != shape or count not in (None, len(tensor)):
        expected = " x ".join(map(str, ("any" if count is None else count, *shape)))
        raise ValueError(f"{name} is {tensor.dtype} of {tuple(tensor.shape)}, expected {dtype} of {expected}")
    return tensor


def towers_of(model: nn.Module) -> dict[Tower, nn.Module]:
    """Return the towers of a model by name; a classifier counts as an image tower."""
    if isinstance(model, DualEncoder):
        return {"image": model.image_encoder, "text": model.text_encoder}
    if isinstance(model, Classifier):
        return {"image": model}
    ((_, spec),) = towers(cast("ModelSpec", model.spec))
    return {"image" if isinstance(spec, ImageEncoderSpec) else "text": model}


def _read_images(samples: Samples, contract: ImageInput) -> tuple[Tensor, tuple[str, ...], Counter[str]]:
    transform = ImageTransform(contract)
    pixels, names, skipped = [], [], Counter[str]()
    for name, data in zip(samples.image_names, samples.images, strict=True):
        try:
            image = transform.pixels(data)
        except ImageError as error:
            skipped[error.reason] += 1
            continue
        pixels.append(torch.from_numpy(image).movedim(-1, 0))
        names.append(name)
    if len(names) < _FEWEST:
        raise ValueError(
            f"only {len(names)} of the {len(samples.images)} images of {samples.name} are usable ({dict(skipped)}); "
            "pass a data set with at least two"
        )
    return torch.stack(pixels), tuple(names), skipped


@torch.no_grad()
def _encoded(
    encoder: nn.Module, inputs: Tensor, stages: tuple[Stage, ...], *, normalize: bool
) -> Iterator[tuple[Tensor, ...]]:
    """Yield, for each batch, the embeddings and the feature maps of the given stages."""
    for part in torch.split(inputs, _BATCH):
        maps: Sequence[Tensor] = ()
        if stages:
            rows, *maps = embedding_and_maps(encoder, part, stages, unit_length=normalize)
        # If the embedding is a mean over positions, the reference is still the embedding of the head.
        if not stages or TEXT_SPACE in stages:
            rows = encoder(part)
        yield (torch.nn.functional.normalize(rows, dim=-1) if normalize else rows, *maps)

"""The inputs that an export is measured on, stored in its folder with the model's embeddings."""

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
from mobileclip.export.contract import EVALUATION, GOLDEN, Contract, feature_name
from mobileclip.export.spec import TEXT_SPACE, Stage, Tower
from mobileclip.export.towers import TowerExport, as_taken, embedding_and_maps, input_of
from mobileclip.inference.comparison import Samples
from mobileclip.inputs import ImageInput
from mobileclip.tensor_files import read_tensors

_BATCH = 16
# Golden vectors are for hosts that check themselves: a few, exactly as the files take them.
_NUM_GOLDEN = 4
_FEWEST = 2
NUM_MAPPED = 12
"""Images whose feature maps are compared."""


@attrs.frozen(kw_only=True, eq=False)
class Outputs:
    """The reference outputs of a tower in float32 for the inputs that its export is measured on.

    Shape:
        embeddings: `(images or captions, embedding_dim)`. features: `(images, channels, rows, columns)` of each stage.

    Args:
        embeddings: of all inputs, of unit length where the export's are.
        features: by the stage behind which they come, of the first inputs alone: maps are large.
    """

    embeddings: Tensor
    features: Mapping[Stage, Tensor] = attrs.field(factory=dict)

    @classmethod
    def of_batches(cls, batches: Iterable[tuple[Tensor, ...]], stages: Sequence[Stage]) -> Outputs:
        """Return what several batches give together.

        Args:
            batches: embeddings of each, and behind them a feature map for each of the stages.
            stages: their numbers.
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
    """Inputs and reference outputs of the towers that a model has.

    Shape:
        pixels: `(images, 3, size, size)`, uint8, resized and cropped. tokens: `(captions, context_length)`, int64.

    Args:
        inputs: of each tower.
        reference: what the model gives in float32.
        image_names: of the images that could be used, in order; empty for a text tower alone.
        captions: in order; empty for an image tower alone.
        skipped: images that could not be used, by reason.
        of_classes: whether it is of a classifier, whose logits stand in place of the embeddings.
    """

    inputs: Mapping[Tower, Tensor]
    reference: Mapping[Tower, Outputs]
    image_names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    skipped: Mapping[str, int] = attrs.field(factory=dict)
    of_classes: bool = False

    def encoder_inputs(self, tower: Tower, encoder: nn.Module) -> Tensor:
        """Return a batch of inputs as the encoder itself takes them."""
        few = self.inputs[tower][:_BATCH]
        contract = input_of(encoder)
        return as_taken(few, contract, "host") if isinstance(contract, ImageInput) else few

    def write(self, folder: Path) -> None:
        """Write everything into the export's folder."""
        from safetensors.torch import save

        tensors = {f"{tower}.input": tensor.contiguous() for tower, tensor in self.inputs.items()}
        for tower, outputs in self.reference.items():
            tensors[stored_name(tower, of_classes=self.of_classes)] = outputs.embeddings.contiguous()
            tensors |= {f"{tower}.{feature_name(stage)}": maps.contiguous() for stage, maps in outputs.features.items()}
        (folder / EVALUATION).write_bytes(save(tensors))

    def write_golden(self, folder: Path, exports: tuple[TowerExport, ...]) -> None:
        """Write a few inputs, exactly as the exported files take them, with the model's outputs for them."""
        from safetensors.torch import save

        tensors = {}
        names = [name for export in exports for name in export.output_names]
        for export in exports:
            few = self.inputs[export.tower][:_NUM_GOLDEN]
            if export.tower == "image":
                few = as_taken(few, cast("ImageInput", input_of(export.encoder)), export.spec.preprocess)
            else:
                few = few.to(getattr(torch, export.text_dtype))
            tensors[export.input_name] = few.contiguous()
            outputs = self.reference[export.tower]
            # Where both towers call it alike, its tower is in front.
            own = export.output_name if names.count(export.output_name) == 1 else f"{export.tower}.{export.output_name}"
            tensors[own] = outputs.embeddings[:_NUM_GOLDEN].contiguous()
            for stage in export.stages:
                tensors[feature_name(stage)] = outputs.features[stage][:_NUM_GOLDEN].contiguous()
        (folder / GOLDEN).write_bytes(save(tensors))


def stored_name(tower: Tower, *, of_classes: bool) -> str:
    """Return what the model's own outputs are stored as.

    Args:
        tower: whose they are.
        of_classes: whether they are a classifier's.
    """
    return f"{tower}.{'logits' if of_classes else 'embedding'}"


def measure_model(model: nn.Module, samples: Samples, *, normalize: bool, stages: tuple[Stage, ...] = ()) -> Measured:
    """Return what an export of a model is compared with.

    Args:
        model: folded, in float32.
        samples: images that cannot be read are left out and counted.
        normalize: whether embeddings are scaled to unit length.
        stages: of the image tower, whose feature maps are compared too.

    Raises:
        ValueError: if fewer than two images can be used, the model itself gives NaN, infinity or zero, or the same
            for all of them, or it has no such stages.
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
            inputs[tower], taken = pixels, as_taken(pixels, contract, "host")
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
    """Make sure that an export can be measured against a model's own outputs.

    Raises:
        ValueError: if there are fewer than two, or one is not finite or zero.
    """
    _check_vectors(tower, "embedding", outputs.embeddings)
    for stage, maps in outputs.features.items():
        _check_vectors(tower, f"map of stage {stage}", maps.flatten(1))


def _check_vectors(tower: Tower, kind: str, embeddings: Tensor) -> None:
    if len(embeddings) < _FEWEST:
        raise ValueError(f"the {tower} tower has {len(embeddings)} {kind}s to be measured against; two are needed")
    lengths = embeddings.norm(dim=1)
    wrong = int((~(lengths.isfinite() & (lengths > 0))).sum())
    if wrong:
        raise ValueError(
            f"the {tower} tower gives {kind}s with NaN, infinity or zero in float32 already, for {wrong} of "
            f"{len(embeddings)} inputs; check its weights"
        )


def read_measured(folder: Path, contract: Contract) -> Measured:
    """Return what an export was compared with when it was made.

    Raises:
        ValueError: if the file is not what the contract needs.
    """
    path = folder / EVALUATION
    if EVALUATION not in contract.files:
        raise ValueError(f"the contract in {folder} names no {EVALUATION}, so nothing can be measured; export again")
    tensors, _ = read_tensors(path)
    kinds: tuple[Tower, ...] = ("image", "text")
    inputs = {tower: tensors[f"{tower}.input"] for tower in kinds if f"{tower}.input" in tensors}
    stored = {tower: stored_name(tower, of_classes=contract.of_classes) for tower in inputs}
    embeddings = {tower: tensors[name] for tower, name in stored.items() if name in tensors}
    missing = [tower.tower for tower in contract.towers if tower.tower not in embeddings]
    counts = {tower: (inputs[tower].shape[:1], embeddings.get(tower, torch.empty(())).shape[:1]) for tower in inputs}
    if missing or any(given != measured or not given for given, measured in counts.values()):
        raise ValueError(f"{path} lacks inputs or embeddings of a tower; export the model again")
    try:
        for tower in contract.towers:
            _check_inputs(tower.tower, inputs[tower.tower], contract)
        reference = {}
        for kind, rows in embeddings.items():
            _check_kind(f"the {kind} embeddings", rows, torch.float32, (contract.output_dim,))
            features = _stored_features(tensors, contract, kind, min(NUM_MAPPED, len(rows)))
            reference[kind] = Outputs(embeddings=rows, features=features)
            check_reference(kind, reference[kind])
    except ValueError as error:
        raise ValueError(f"{path} is not what its contract says: {error}; export the model again") from error
    return Measured(inputs=inputs, reference=reference, of_classes=contract.of_classes)


def _stored_features(tensors: Mapping[str, Tensor], contract: Contract, kind: Tower, count: int) -> dict[Stage, Tensor]:
    """Return the model's own feature maps of the first images, by stage."""
    features: dict[Stage, Tensor] = {}
    for one in (one for tower in contract.towers if tower.tower == kind for one in tower.features):
        features[one.stage] = maps = tensors.get(f"{kind}.{one.name}", torch.empty(0))
        _check_kind(f"the maps of {one.name}", maps, torch.float32, one.shape[1:])
        if len(maps) != count:
            raise ValueError(f"there are {len(maps)} maps of {one.name}, expected {count}")
    return features


def _check_inputs(tower: Tower, inputs: Tensor, contract: Contract) -> None:
    """Make sure that stored inputs are those of a tower that was exported."""
    if contract.image is not None and tower == "image":
        size = contract.image.input.size
        _check_kind("the images", inputs, torch.uint8, (3, size, size))
    elif contract.text is not None:
        text = contract.text.input
        _check_kind("the texts", inputs, torch.int64, (text.context_length,))
        if not bool(((inputs >= 0) & (inputs < text.vocab_size)).all()):
            raise ValueError(f"the texts hold ids that are none of the {text.vocab_size} of the vocabulary")


def _check_kind(what: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape[1:] != shape:
        found, expected = (str(one).removeprefix("torch.") for one in (tensor.dtype, dtype))
        raise ValueError(f"{what} are {found} of {tuple(tensor.shape[1:])} each, expected {expected} of {shape}")


def towers_of(model: nn.Module) -> dict[Tower, nn.Module]:
    """Return the towers of a model by name; of a tower alone, itself, and of a classifier, it as a whole."""
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
            f"only {len(names)} of the {len(samples.images)} images of {samples.name} can be used ({dict(skipped)}); "
            "give a data set with at least two"
        )
    return torch.stack(pixels), tuple(names), skipped


@torch.no_grad()
def _encoded(
    encoder: nn.Module, inputs: Tensor, stages: tuple[Stage, ...], *, normalize: bool
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the embeddings of one batch after another, and behind them the feature maps of some stages."""
    for part in torch.split(inputs, _BATCH):
        maps: Sequence[Tensor] = ()
        if stages:
            rows, *maps = embedding_and_maps(encoder, part, stages, unit_length=normalize)
        # Where the mean of places stands in for the head, the head's own embedding is the reference.
        if not stages or TEXT_SPACE in stages:
            rows = encoder(part)
        yield (torch.nn.functional.normalize(rows, dim=-1) if normalize else rows, *maps)

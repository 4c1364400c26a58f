"""Compares a model's outputs for images and texts with published outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
from attrs import validators

from mobileclip.blocks import models
from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.extras import VERSION
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inference.loading import load
from mobileclip.serialization import from_json
from mobileclip.strict import strict
from mobileclip.tensor_files import file_sha256

FOLDER = Path(__file__).with_name("known_outputs")
_MOST_BYTES = 1 << 20


@attrs.frozen(kw_only=True, field_transformer=strict)
class ImageReference:
    """An image, given by file name and SHA-256 in hexadecimal."""

    name: str
    sha256: str = attrs.field(validator=validators.matches_re(r"[0-9a-f]{64}"))


@attrs.frozen(kw_only=True, field_transformer=strict)
class KnownOutput:
    """A published embedding of a text or an image, or published probabilities of texts for an image.

    Args:
        model: name of the model.
        source: publication or URL of the outputs.
        image: the embedded image; None for the embedding of a text.
        texts: the embedded text, or the labels for an image.
        first: first numbers of the unit-length embedding.
        probabilities: probabilities of the texts: softmax of 100 times the cosines.
        tolerance: maximum absolute difference from each published number; None if `factor` is set.
        factor: maximum ratio between a number and the published number, for outputs of which only the magnitudes are
            comparable; None if `tolerance` is set.

    Raises:
        ValueError: if both or neither of `tolerance` and `factor` are set, or the image and texts do not fit the
            expected output.
    """

    model: str
    source: str
    image: ImageReference | None = None
    texts: tuple[str, ...] = ()
    first: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    tolerance: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    factor: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(1)))

    def __attrs_post_init__(self) -> None:
        if (self.tolerance is None) == (self.factor is None):
            raise ValueError("set either a tolerance or a factor for the comparison")
        is_shown = self.image is not None
        of_one = bool(self.first) and not self.probabilities and is_shown + len(self.texts) == 1
        of_several = bool(self.texts) and not self.first and is_shown and len(self.probabilities) == len(self.texts)
        if not (of_one or of_several):
            raise ValueError(
                "set either the first numbers of the embedding of one text or image, or one probability per text for "
                "an image"
            )

    @property
    def expected(self) -> tuple[float, ...]:
        """Published numbers: the first numbers of an embedding, or probabilities."""
        return self.first or self.probabilities

    def __str__(self) -> str:
        """Return a description of the inputs: texts, or image name with texts."""
        texts = ", ".join(map(repr, self.texts))
        return texts if self.image is None else f"{self.image.name}{f' and {texts}' if texts else ''}"


@attrs.frozen(kw_only=True, field_transformer=strict)
class KnownOutputs:
    """Known outputs of one or several models."""

    outputs: tuple[KnownOutput, ...]


def known_outputs(path: Path | None = None) -> KnownOutputs:
    """Read known outputs from a file, by default from the file in the package.

    Raises:
        ValueError: if the file does not contain known outputs, or is larger than 1 MiB.
        OSError: if the file cannot be read.
    """
    path = path or FOLDER / "outputs.json"
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} has more than {_MOST_BYTES:,} bytes, the limit for a file of known outputs")
    return from_json(path.read_text(encoding="utf-8"), KnownOutputs)


SCALE = 100.0


@attrs.frozen(kw_only=True, field_transformer=strict)
class Finding:
    """The result of comparing a model with one known output.

    Args:
        what: description of the input.
        source: publication or URL of the expected numbers.
        expected: published numbers.
        found: numbers from the model; empty if the image file is missing.
        agrees: whether the numbers agree; None without a comparison.
        note: reason for a missing comparison; empty after a comparison.
    """

    what: str
    source: str
    expected: tuple[float, ...]
    found: tuple[float, ...] = ()
    agrees: bool | None = None
    note: str = ""


@attrs.frozen(kw_only=True, field_transformer=strict)
class WeightsRecord:
    """The results of comparing a model with all known outputs for its weights.

    Args:
        model: name of the model.
        checkpoint: origin of the weights.
        weights_sha256: SHA-256 of all tensors with this library's tensor names, see `mobileclip.tensor_files.weights`.
        version: version of this library.
        torch: version of PyTorch.
        findings: one finding per known output.
    """

    model: str
    checkpoint: str
    weights_sha256: str
    version: str
    torch: str
    findings: tuple[Finding, ...]

    @property
    def agrees(self) -> bool:
        """Whether there is at least one comparison, and all compared numbers agree."""
        compared = [one.agrees for one in self.findings if one.agrees is not None]
        return bool(compared) and all(compared)


def check_weights(
    model: str,
    checkpoint: str | None = None,
    *,
    known: KnownOutputs | None = None,
    images: Sequence[Path] = (),
) -> WeightsRecord:
    """Compare a model's outputs with published outputs for its weights.

    Args:
        model: name of a model with known outputs, such as `mobileclip_s0`.
        checkpoint: weights to check instead of the published weights; None for the published weights.
        known: expected outputs; by default the known outputs in the package.
        images: image files in which to search, by SHA-256, for images that the package lacks.

    Raises:
        ValueError: if the model has no known outputs, or the weights are missing or do not fit the model, see
            `mobileclip.load`.
    """
    known = known or known_outputs()
    outputs = [one for one in known.outputs if one.model == model]
    if not outputs:
        names = ", ".join(dict.fromkeys(one.model for one in known.outputs))
        raise ValueError(f"{model!r} has no known outputs; known outputs exist for {names}")
    # A user's checkpoint may hold a model without a name; the checkpoint then determines the model.
    clip = load(model if checkpoint is None or model in models else None, checkpoint, identify=True)
    identity = clip.identity
    assert identity is not None, "load() computed the identity"
    return WeightsRecord(
        model=model,
        checkpoint=checkpoint or PRETRAINED.get(model, model),
        weights_sha256=identity.weights_sha256,
        version=VERSION,
        torch=torch.__version__,
        findings=tuple(_finding(clip, one, images) for one in outputs),
    )


def _finding(clip: ImageTextModel, known: KnownOutput, images: Sequence[Path]) -> Finding:
    finding = Finding(what=str(known), source=known.source, expected=known.expected)
    place = None if known.image is None else _at_hand(known.image, images)
    if known.image is not None and place is None:
        note = f"no file has the SHA-256 {known.image.sha256} of {known.image.name}; pass the image with --image"
        return attrs.evolve(finding, note=note)
    found = _output(clip, known, place)
    agrees = all(_is_near(known, one, other) for one, other in zip(known.expected, found, strict=True))
    return attrs.evolve(finding, found=found, agrees=agrees)


def _output(clip: ImageTextModel, known: KnownOutput, image: Path | None) -> tuple[float, ...]:
    texts = clip.encode_text(list(known.texts)) if known.texts else None
    encoded = None if image is None else clip.encode_image(image)
    if texts is not None and encoded is not None:
        probabilities = (SCALE * encoded @ texts.T)[0].softmax(-1)
        return tuple(probabilities.tolist())
    embedding = encoded if texts is None else texts
    assert embedding is not None, "a known output has texts or an image"
    return tuple(embedding[0, : len(known.first)].tolist())


def _is_near(known: KnownOutput, expected: float, found: float) -> bool:
    if known.tolerance is not None:
        return abs(found - expected) <= known.tolerance
    assert known.factor is not None, "KnownOutput requires a tolerance or a factor"
    return expected / known.factor <= found <= expected * known.factor


def _at_hand(image: ImageReference, places: Sequence[Path]) -> Path | None:
    """Return the file with an image's SHA-256 in the package or in `places`; None if there is no such file."""
    for place in (FOLDER / image.name, *places):
        if place.is_file() and file_sha256(place) == image.sha256:
            return place
    return None

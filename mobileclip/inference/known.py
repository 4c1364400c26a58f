"""Checks models against published outputs for images and texts."""

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
class Picture:
    """An image by its name and its SHA-256, in hexadecimal."""

    name: str
    sha256: str = attrs.field(validator=validators.matches_re(r"[0-9a-f]{64}"))


@attrs.frozen(kw_only=True, field_transformer=strict)
class KnownOutput:
    """A published embedding of a text or an image, or published probabilities of texts for an image.

    Args:
        model: name of the model.
        source: where the outputs were published.
        picture: the embedded image.
        texts: the embedded text, or the labels of an image.
        first: first numbers of the unit-length embedding.
        probabilities: probabilities of the texts: softmax of 100 times the cosines.
        tolerance: absolute tolerance.
        factor: largest ratio between a number and the published number, if only magnitudes are comparable.

    Raises:
        ValueError: if not exactly one of `tolerance` and `factor` is set, or the inputs do not fit the output.
    """

    model: str
    source: str
    picture: Picture | None = None
    texts: tuple[str, ...] = ()
    first: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    tolerance: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    factor: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(1)))

    def __attrs_post_init__(self) -> None:
        if (self.tolerance is None) == (self.factor is None):
            raise ValueError("set either a tolerance or a factor for the comparison")
        is_shown = self.picture is not None
        of_one = bool(self.first) and not self.probabilities and is_shown + len(self.texts) == 1
        of_several = bool(self.texts) and not self.first and is_shown and len(self.probabilities) == len(self.texts)
        if not (of_one or of_several):
            raise ValueError(
                "set either the first numbers of the embedding of one text or image, or one probability per text for "
                "an image"
            )

    @property
    def expected(self) -> tuple[float, ...]:
        """The expected numbers."""
        return self.first or self.probabilities

    def __str__(self) -> str:
        """Describe the input."""
        texts = ", ".join(map(repr, self.texts))
        return texts if self.picture is None else f"{self.picture.name}{f' and {texts}' if texts else ''}"


@attrs.frozen(kw_only=True, field_transformer=strict)
class KnownOutputs:
    """Known outputs, of one model or several."""

    outputs: tuple[KnownOutput, ...]


def known_outputs(path: Path | None = None) -> KnownOutputs:
    """Read known outputs from a file, by default the package's.

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
    """The comparison with one known output.

    Args:
        what: description of the input.
        source: source of the expected numbers.
        expected: the published numbers.
        found: the model's numbers; empty if the image was missing.
        agrees: whether the numbers agree; None without a comparison.
        note: reason for a missing comparison.
    """

    what: str
    source: str
    expected: tuple[float, ...]
    found: tuple[float, ...] = ()
    agrees: bool | None = None
    note: str = ""


@attrs.frozen(kw_only=True, field_transformer=strict)
class WeightsRecord:
    """The comparison of a model's weights with known outputs.

    Args:
        model: name of the model.
        checkpoint: origin of the weights.
        weights_sha256: SHA-256 of all tensors under this library's names, see `mobileclip.tensor_files.weights`.
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
        """Whether at least one output was compared, and all compared numbers agree."""
        compared = [one.agrees for one in self.findings if one.agrees is not None]
        return bool(compared) and all(compared)


def check_weights(
    model: str,
    checkpoint: str | None = None,
    *,
    known: KnownOutputs | None = None,
    pictures: Sequence[Path] = (),
) -> WeightsRecord:
    """Compare a model's outputs with published outputs for its weights.

    Args:
        model: name, such as `mobileclip_s0`, for its published weights; with a checkpoint, any name with known outputs.
        checkpoint: weights to check instead of the published weights.
        known: expected outputs; by default the package's.
        pictures: image files to search for images that the package lacks, by SHA-256.

    Raises:
        ValueError: if the model has no known outputs, or its weights are missing or do not fit, see `mobileclip.load`.
    """
    known = known or known_outputs()
    outputs = [one for one in known.outputs if one.model == model]
    if not outputs:
        names = ", ".join(dict.fromkeys(one.model for one in known.outputs))
        raise ValueError(f"{model!r} has no known outputs; known outputs exist for {names}")
    # A user's checkpoint may hold a model without a name; the checkpoint then determines the model.
    clip = load(model if checkpoint is None or model in models else None, checkpoint, identify=True)
    identity = clip.identity
    assert identity is not None, "load() computed it"
    return WeightsRecord(
        model=model,
        checkpoint=checkpoint or PRETRAINED.get(model, model),
        weights_sha256=identity.weights_sha256,
        version=VERSION,
        torch=torch.__version__,
        findings=tuple(_finding(clip, one, pictures) for one in outputs),
    )


def _finding(clip: ImageTextModel, known: KnownOutput, pictures: Sequence[Path]) -> Finding:
    finding = Finding(what=str(known), source=known.source, expected=known.expected)
    place = None if known.picture is None else _at_hand(known.picture, pictures)
    if known.picture is not None and place is None:
        note = f"no file has the SHA-256 {known.picture.sha256} of {known.picture.name}; pass the image with --image"
        return attrs.evolve(finding, note=note)
    found = _output(clip, known, place)
    agrees = all(_is_near(known, one, other) for one, other in zip(known.expected, found, strict=True))
    return attrs.evolve(finding, found=found, agrees=agrees)


def _output(clip: ImageTextModel, known: KnownOutput, picture: Path | None) -> tuple[float, ...]:
    texts = clip.encode_text(list(known.texts)) if known.texts else None
    image = None if picture is None else clip.encode_image(picture)
    if texts is not None and image is not None:
        probabilities = (SCALE * image @ texts.T)[0].softmax(-1)
        return tuple(probabilities.tolist())
    embedding = image if texts is None else texts
    assert embedding is not None, "a known output has texts or an image"
    return tuple(embedding[0, : len(known.first)].tolist())


def _is_near(known: KnownOutput, expected: float, found: float) -> bool:
    if known.tolerance is not None:
        return abs(found - expected) <= known.tolerance
    assert known.factor is not None, "the spec checks this"
    return expected / known.factor <= found <= expected * known.factor


def _at_hand(picture: Picture, places: Sequence[Path]) -> Path | None:
    """Return the file of an image in the package or in `places`; None if missing."""
    for place in (FOLDER / picture.name, *places):
        if place.is_file() and file_sha256(place) == picture.sha256:
            return place
    return None

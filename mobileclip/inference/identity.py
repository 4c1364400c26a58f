"""Identities of models and embedding spaces; embeddings of two different spaces are not comparable."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

import attrs
from attrs import validators

from mobileclip.encoders import DualEncoder, DualEncoderSpec
from mobileclip.encoders.checkpoints import LoadedCheckpoint, ModelSpec, read_checkpoint
from mobileclip.encoders.checkpoints.saving import TrainingProvenance
from mobileclip.extras import VERSION
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import parse_json
from mobileclip.tensor_files.weights import weights_sha256

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _is_hash(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{attribute.name} is {str(value)[:80]!r}, expected 64 hexadecimal digits in lower case")


@lru_cache
def _read(spec: str) -> object:
    """Return the spec in a JSON text, or the text if the JSON is not a spec of this library."""
    try:
        return from_json(spec, DualEncoderSpec)
    except (ValueError, TypeError):
        return spec


@attrs.frozen(kw_only=True)
class ModelIdentity:
    """The identity of a model, for storing with embeddings: weights, spec and version.

    Args:
        weights_sha256: SHA-256 of the stored weights. Reparameterized weights have another hash, because the embeddings
            differ by rounding.
        spec: spec of the model (towers and inputs), as JSON.
        version: version of this library, for information only; comparisons ignore the version.

    Raises:
        ValueError: if the hash is invalid, or the spec is empty.
    """

    weights_sha256: str = attrs.field(validator=_is_hash)
    spec: str = attrs.field(validator=validators.and_(validators.instance_of(str), validators.min_len(1)))
    version: str = attrs.field(validator=validators.instance_of(str))

    def is_same(self, other: ModelIdentity) -> bool:
        """Return whether embeddings of both models are comparable."""
        return self.weights_sha256 == other.weights_sha256 and _read(self.spec) == _read(other.spec)

    def require_same(self, other: ModelIdentity, *, here: str, there: str) -> None:
        """Raise an error if embeddings of this model and another model are not comparable.

        Args:
            other: identity of the other model.
            here: noun for this model's embeddings, for the message.
            there: noun for the other model's embeddings, for the message.

        Raises:
            ValueError: if the weights or the specs of the two models differ.
        """
        if self.is_same(other):
            return
        if self.weights_sha256 != other.weights_sha256:
            what = f"weights {self.weights_sha256[:12]} and {other.weights_sha256[:12]}"
        else:
            what = "the same weights with different specs, so images or texts are preprocessed differently"
        raise ValueError(
            f"{here} and {there} belong to different models ({what}), whose embeddings cannot be compared; embed both "
            "with one model"
        )

    def to_json(self) -> str:
        """Return the identity as one line of JSON."""
        return json.dumps(attrs.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelIdentity:
        """Parse an identity from the JSON of `to_json`.

        Raises:
            ValueError: if the text is not JSON, or a field is missing, unknown or invalid.
        """
        try:
            return cls(**parse_json(text))
        except TypeError as error:
            raise ValueError(f"the model's identity is invalid: {error}") from None


def identity_of(model: DualEncoder) -> ModelIdentity:
    """Return the identity of a model, for storing with embeddings.

    Args:
        model: dual encoder in the stored form, before any folding.
    """
    return ModelIdentity(
        weights_sha256=weights_sha256(model.state_dict()),
        spec=to_json(model.spec, unstructure_as=DualEncoderSpec),
        version=VERSION,
    )


def stored_space(stored: LoadedCheckpoint, place: str | Path) -> ModelIdentity:
    """Return the embedding space that a checkpoint names, or else the identity of the checkpoint's model.

    Raises:
        ValueError: if the embedding space is invalid, or the checkpoint has only a tower or classifier and no embedding
            space.
    """
    if stored.provenance.space:
        try:
            return ModelIdentity.from_json(stored.provenance.space)
        except ValueError as error:
            raise ValueError(f"{place} names an invalid embedding space: {error}") from None
    if not isinstance(stored.spec, DualEncoderSpec):
        raise ValueError(
            f"{place} is a single tower without the name of an embedding space; pass the full model, or a tower "
            "that was distilled from a model or extracted by `mobileclip convert MODEL --tower text|image -o "
            "FILE`"
        )
    model = stored.build()
    assert isinstance(model, DualEncoder), "the spec is a dual encoder's"
    return identity_of(model)


def converted_from(source: str | Path, model: str | ModelSpec | None, stored: LoadedCheckpoint) -> TrainingProvenance:
    """Return the provenance of a converted checkpoint, with the embedding space of the original checkpoint.

    Args:
        source: path or `hf-hub:` name of the original checkpoint.
        model: name or spec of the original model; None if the checkpoint names the model.
        stored: the converted tower or model.
    """
    if stored.provenance.space:
        return stored.provenance
    whole = read_checkpoint(source, model)
    space = stored_space(whole, source).to_json() if isinstance(whole.spec, DualEncoderSpec) else ""
    return attrs.evolve(stored.provenance, space=space)

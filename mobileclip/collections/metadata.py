"""Metadata of an index: its model, the arguments to load the model, and completely read files."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import validators

from mobileclip.encoders import DualEncoderSpec, is_other_model, packaged
from mobileclip.inference import ImageTextModel, ModelIdentity, holds_weights, load, spec_known_by_name
from mobileclip.inputs import Decode
from mobileclip.serialization import from_json
from mobileclip.strict import strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class ModelSource:
    """The arguments of `mobileclip.load` that select a model.

    Args:
        model: `model` argument of `mobileclip.load`; None if the checkpoint determines the model.
        checkpoint: path or hub address of the weights; None for the published weights.
        image_size: side of the images in pixels; None for the model's default.
        context_length: number of token ids per text; None for the model's default.
    """

    model: str | None = None
    checkpoint: str | None = None
    image_size: int | None = None
    context_length: int | None = None

    def __str__(self) -> str:
        """Describe the source: the model, and weights and sizes that differ from the model's defaults."""
        name = " from ".join(filter(None, (self.model, self.checkpoint)))
        size = "" if self.image_size is None else f" for images of {self.image_size} pixels"
        return name + size + ("" if self.context_length is None else f" for texts of {self.context_length} ids")

    def in_full(self) -> ModelSource:
        """Return the source with absolute paths."""
        # A model name stays a name, even if a file has the same name.
        model = _in_full(self.model) if self.model is not None and holds_weights(self.model) else self.model
        return attrs.evolve(self, checkpoint=_in_full(self.checkpoint), model=model)

    def known_spec(self) -> DualEncoderSpec | None:
        """Return the spec of the model from its name, without reading weights; None if the name is not sufficient.

        Raises:
            ValueError, FileNotFoundError: if the model is unknown, see `mobileclip.load`.
        """
        return spec_known_by_name(
            self.model, self.checkpoint, image_size=self.image_size, context_length=self.context_length
        )

    def load(
        self, device: str, *, trust: bool = False, text_model: str | Path | None = None
    ) -> tuple[ImageTextModel, ModelIdentity]:
        """Load the model with all packaged text towers, and return the model and its identity.

        Args:
            device: device of the model.
            trust: whether to open an exported model that may run code on this machine, see `mobileclip.load`.
            text_model: text tower that replaces the model's text tower, see `mobileclip.load`; None to keep the
                model's text tower.

        Raises:
            ValueError, FileNotFoundError, CheckpointError: if the model cannot be loaded, see `mobileclip.load`.
        """
        clip = load(
            self.model,
            self.checkpoint,
            device=device,
            image_size=self.image_size,
            context_length=self.context_length,
            trust=trust,
            text_model=text_model,
            any_language=True,
            identify=True,
        )
        assert clip.identity is not None, "the identity was requested"
        return clip, clip.identity


@attrs.frozen(kw_only=True, field_transformer=strict)
class FinishedFile:
    """A shard or video that an update has read completely.

    Args:
        path: path of the file.
        num_bytes: size of the file at the time of reading, in bytes.
        mtime_ns: modification time of the file at the time of reading, in nanoseconds since 1970.
    """

    path: str
    num_bytes: int
    mtime_ns: int


@attrs.frozen(kw_only=True, field_transformer=strict)
class IndexMetadata:
    """The metadata of an index: identity and source of the model, and JPEG decoding.

    Args:
        weights_sha256: SHA-256 of the model's stored weights, see `ModelIdentity`.
        spec: spec of the model as JSON, see `ModelIdentity`.
        version: version of the library, for information only.
        dim: number of dimensions of the embeddings.
        model: arguments to load the model.
        decode: JPEG decoding at the last update, see `IndexOptions`.

    Raises:
        ValueError: if `dim` is not positive, or a value has the wrong type.
    """

    weights_sha256: str
    spec: str
    version: str
    dim: int = attrs.field(validator=validators.gt(0))
    model: ModelSource = ModelSource()
    decode: Decode = "fast"

    @property
    def identity(self) -> ModelIdentity:
        """Identity of the model that computed the embeddings."""
        return ModelIdentity(weights_sha256=self.weights_sha256, spec=self.spec, version=self.version)

    def is_known_to_be_of_another(self, source: ModelSource) -> bool:
        """Return whether the name of a model shows that a different model computed the embeddings.

        Args:
            source: arguments to load the model; the function neither reads nor downloads weights.

        Raises:
            ValueError, FileNotFoundError: if the model is unknown, see `mobileclip.load`.
        """
        known = source.known_spec()
        try:
            own = from_json(self.spec, DualEncoderSpec)
        except ValueError:  # the kind of model is not registered in this process
            return False
        return known is not None and is_other_model(known, own)


def _in_full(place: str | None) -> str | None:
    """Return the absolute path of an existing file or folder; return other names unchanged."""
    if place is None or packaged(place) is not None or not Path(place).exists():
        return place
    return str(Path(place).absolute())

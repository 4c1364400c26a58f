"""The file that says what an index is of: one model's space, and the segments that hold its rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.encoders import DualEncoderSpec
from mobileclip.encoders.checkpoints import packaged
from mobileclip.encoders.checkpoints.loading import is_other_model
from mobileclip.inference.identity import ModelIdentity
from mobileclip.inference.loading import holds_weights, load_identified, spec_known_by_name
from mobileclip.inference.zero_shot import ImageTextModel
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import repeated, strict

MANIFEST = "manifest.json"

_SEGMENT = re.compile(r"[0-9]{8}\.parquet")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 2**28


@attrs.frozen(kw_only=True, field_transformer=strict)
class Segment:
    """A file of rows, which is never changed.

    Args:
        name: of the file in the folder, such as `00000001.parquet`.
        num_rows: in it, those that were removed included.
        num_bytes: of the file.
        sha256: of the file.
        removed: places of the rows that count no longer, from 0, in order.

    Raises:
        ValueError: if a value is none of these.
    """

    name: str = attrs.field(validator=validators.matches_re(_SEGMENT))
    num_rows: int = attrs.field(validator=validators.gt(0))
    num_bytes: int = attrs.field(validator=validators.gt(0))
    sha256: str = attrs.field(validator=validators.matches_re(_SHA256))
    removed: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Check that what was removed was there."""
        places = self.removed
        if places and (min(places) < 0 or max(places) >= self.num_rows or len(set(places)) != len(places)):
            raise ValueError(f"{self.name} has {self.num_rows} rows, and others than these are said to be removed")


@attrs.frozen(kw_only=True, field_transformer=strict)
class ModelSource:
    """Where the model comes from, as `mobileclip.load` takes it.

    Args:
        model: its name, where one was given.
        checkpoint: its weights, where they were given.
        image_size: side of the images in pixels, where not the model's own.
        context_length: ids per text, where fewer than the model's own.
    """

    model: str | None = None
    checkpoint: str | None = None
    image_size: int | None = None
    context_length: int | None = None

    def __str__(self) -> str:
        """Say it as a person would: the model, and where its weights and sizes are other ones than its own."""
        name = " from ".join(filter(None, (self.model, self.checkpoint)))
        size = "" if self.image_size is None else f" for images of {self.image_size} pixels"
        return name + size + ("" if self.context_length is None else f" for texts of {self.context_length} ids")

    def in_full(self) -> ModelSource:
        """Return it with paths in full, as an index keeps it."""
        # A name stays a name, whatever lies beside it.
        model = _in_full(self.model) if self.model is not None and holds_weights(self.model) else self.model
        return attrs.evolve(self, checkpoint=_in_full(self.checkpoint), model=model)

    def known_spec(self) -> DualEncoderSpec | None:
        """Return the spec of the model, as far as its name tells; nothing is read, and nothing is fetched.

        Raises:
            ValueError, FileNotFoundError: if there is no such model, see `mobileclip.load`.
        """
        return spec_known_by_name(
            self.model, self.checkpoint, image_size=self.image_size, context_length=self.context_length
        )

    def load(self, device: str, *, trust: bool = False) -> tuple[ImageTextModel, ModelIdentity]:
        """Return the model, and what identifies it.

        Args:
            device: where to compute.
            trust: whether whoever made an export may run anything here, see `mobileclip.load`.

        Raises:
            ValueError, FileNotFoundError, CheckpointError: if there is no such model, see `mobileclip.load`.
        """
        return load_identified(
            self.model,
            self.checkpoint,
            device=device,
            image_size=self.image_size,
            context_length=self.context_length,
            trust=trust,
        )


@attrs.frozen(kw_only=True, field_transformer=strict)
class FinishedFile:
    """A file of many pictures that was read to its end.

    Args:
        path: of the file.
        num_bytes: of the file, at that time.
        mtime_ns: when it was last changed, in nanoseconds since 1970, at that time.
    """

    path: str
    num_bytes: int
    mtime_ns: int


@attrs.frozen(kw_only=True, field_transformer=strict)
class Manifest:
    """What an index is of, and what it is made of.

    Args:
        layout: of the folder; this library reads 1.
        weights_sha256: see `ModelIdentity`.
        spec: see `ModelIdentity`.
        version: see `ModelIdentity`.
        dim: numbers in an embedding.
        vector_type: of these numbers.
        normalized: whether embeddings have unit length.
        model: where the model comes from.
        inputs: what was indexed: files, folders and shards, in full.
        segments: the rows.
        finished: files of many pictures that need not be read again.
        next_segment: number of the segment that is written next.
        next_id: of the row that is written next; a row keeps its id for good.

    Raises:
        ValueError: if a value is none of these, or a segment is there twice.
    """

    layout: Literal[1] = 1
    weights_sha256: str
    spec: str
    version: str
    dim: int = attrs.field(validator=validators.gt(0))
    vector_type: Literal["float16"] = "float16"
    normalized: Literal[True] = True
    model: ModelSource = ModelSource()
    inputs: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    finished: tuple[FinishedFile, ...] = ()
    next_segment: int = attrs.field(default=0, validator=validators.ge(0))
    next_id: int = attrs.field(default=0, validator=validators.ge(0))

    def __attrs_post_init__(self) -> None:
        """Check that every segment is there once."""
        if twice := repeated(segment.name for segment in self.segments):
            raise ValueError(f"the segment {twice[0]} is there twice")

    @property
    def identity(self) -> ModelIdentity:
        """The model that the embeddings are of."""
        return ModelIdentity(weights_sha256=self.weights_sha256, spec=self.spec, version=self.version)

    def is_known_to_be_of_another(self, source: ModelSource) -> bool:
        """Return whether the name of a model alone tells that the embeddings are of another one.

        Args:
            source: the model; nothing of it is read, and nothing is fetched.

        Raises:
            ValueError, FileNotFoundError: if there is no such model, see `mobileclip.load`.
        """
        known = source.known_spec()
        try:
            own = from_json(self.spec, DualEncoderSpec)
        except ValueError:  # of a kind that nobody has registered here
            return False
        return known is not None and is_other_model(known, own)


def is_segment_name(name: str) -> bool:
    """Return whether a file is called like a segment."""
    return _SEGMENT.fullmatch(name) is not None


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of an index.

    Raises:
        FileNotFoundError: if the folder is no index.
        ValueError: if it is damaged, or of another layout.
    """
    path = folder / MANIFEST
    try:
        text = storage.read_bytes(path, limit=_MOST_BYTES).decode()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{folder} is no index: there is no {MANIFEST} in it; make one with mobileclip index"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder, and index the pictures again") from None
    try:
        return from_json(text, Manifest)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, or of another version of this library: {error}; delete the folder, and index the "
            "pictures again"
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in the place of the one before, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    with storage.atomic_write(folder / MANIFEST) as stream:
        stream.write(to_json(manifest).encode())


def _in_full(place: str | None) -> str | None:
    """Return the full path of a file or folder that is there; everything else as it is."""
    if place is None or packaged(place) is not None or not Path(place).exists():
        return place
    return str(Path(place).absolute())

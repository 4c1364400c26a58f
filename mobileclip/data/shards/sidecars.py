"""Files next to shards: sample counts, and the data card of reinforced shards."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.augmentation.policy import AugmentationSpec
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.sample import Layout
from mobileclip.data.shards.files import count_shard, is_local, runs_program
from mobileclip.inputs import ImageInput
from mobileclip.machine import raise_machine_fault
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import parse_json, strict
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

SIZES = "sizes.json"
"""File next to shards, common among webdataset users: a JSON object of sample counts by shard name."""
MANIFEST = "manifest.jsonl"
"""File next to reinforced shards, with one JSON line for every finished shard."""
# A reinforced data set may have nested folders, with its card in the topmost folder.
MOST_FOLDERS_ABOVE = 3
# Maximum number of local shards that are counted automatically, which takes a few minutes at most.
MOST_COUNTED = 1_000
_MAX_BYTES = 2**31
_MAX_SAMPLES = 2**36


class UncountedError(ValueError):
    """Raised if sample counts are unknown, and the shards are remote or too many to count."""


def shard_sizes(shards: Sequence[str], limits: SampleLimits = SAMPLE_LIMITS) -> tuple[int, ...]:
    """Return the number of samples of each shard.

    The sizes come from `sizes.json` next to the shards or from the manifest of reinforced shards. Up to a thousand
    local shards without a stored size are counted from the tar headers.

    Args:
        shards: paths or URLs of the shards.
        limits: limits on the size of a sample.

    Raises:
        ValueError: if `sizes.json` or a manifest cannot be read.
        UncountedError: if a shard without a stored size is remote, or more than a thousand shards have no stored size.
    """
    known: dict[str, int] = {}
    said = cache(_said)
    for folder in dict.fromkeys(shard_folder(shard) for shard in shards if not runs_program(shard)):
        above = next(filter(said, folders_above(folder)), None)
        if above is not None:
            known |= {storage.join(above, name): size for name, size in said(above).items()}
    unknown = [shard for shard in dict.fromkeys(shards) if _path(shard) not in known]
    if len(unknown) > MOST_COUNTED or not all(map(is_local, unknown)):
        first = storage.printable(storage.without_secrets(unknown[0]))
        raise UncountedError(
            f"the number of samples is unknown in {len(unknown):,} shards such as {first}, but epochs need the number; "
            f"count the samples once with `mobileclip data count SHARDS`, which writes {SIZES} next to the shards, or "
            "choose sampling `endless`, which needs no counts"
        )
    if len(unknown) > 1:
        logger.info("counting the samples of %d shards; `mobileclip data count` stores the counts", len(unknown))
    # A truncated shard counts as at least one sample, so that it is read and reported.
    known |= {_path(shard): count_shard(shard, limits)[0] or 1 for shard in unknown}
    return tuple(known[_path(shard)] for shard in shards)


def read_sizes(folder: str | os.PathLike[str]) -> Mapping[str, int] | None:
    """Return the sample counts in a folder's `sizes.json` by shard name; None if the file does not exist.

    Raises:
        ValueError: if the file cannot be read, or is not an object of sample counts.
    """
    path = storage.join(os.fspath(folder), SIZES)
    try:
        content = storage.read_if_exists(path, limit=_MAX_BYTES)
        if content is None:
            return None
        sizes = parse_json(content.decode())
    except (ValueError, OSError) as error:
        raise_machine_fault(error)
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(sizes, dict) or not all(map(_is_size, sizes.values())):
        raise ValueError(f"{path} must be an object of sample counts by shard name")
    return sizes


def write_sizes(folder: str | os.PathLike[str], sizes: Mapping[str, int]) -> str:
    """Write `sizes.json` into a folder atomically, and return its path."""
    path = storage.join(os.fspath(folder), SIZES)
    storage.write_text(path, json.dumps(dict(sorted(sizes.items())), indent=0) + "\n")
    return path


def shard_folder(shard: str) -> str:
    """Return the path or URL of a shard's folder."""
    return shard.rpartition("/")[0] or os.curdir


def folders_above(folder: str, most: int = MOST_FOLDERS_ABOVE) -> Iterator[str]:
    """Yield a folder and at most `most` of its parents within the given path."""
    yield folder
    above = folder.rpartition("/")[0]
    if not above and not folder.startswith("/") and folder != os.curdir:
        above = os.curdir
    if above and most and storage.is_remote(above) == storage.is_remote(folder):
        yield from folders_above(above, most - 1)


def _said(folder: str) -> Mapping[str, int]:
    sizes = read_sizes(folder)
    if sizes is not None:
        return sizes
    path, sizes = storage.join(folder, MANIFEST), {}
    *lines, _ = (storage.read_if_exists(path, limit=_MAX_BYTES) or b"").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_json(line.decode())
        except ValueError as error:
            raise ValueError(f"line {number} of {path} cannot be read: {error}") from None
        if isinstance(entry, dict) and isinstance(entry.get("shard"), str) and _is_size(entry.get("num_samples")):
            sizes[entry["shard"]] = entry["num_samples"]
    return sizes


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_SAMPLES


def _path(shard: str) -> str:
    return storage.join(shard_folder(shard), storage.file_name(shard)) if not runs_program(shard) else shard


CARD = "reinforcement.json"
# Maximum size of a card, which has a few teachers and counts.
_MAX_CARD_BYTES = 2**24


@attrs.frozen(kw_only=True, field_transformer=strict)
class TeacherEntry:
    """A teacher of reinforced data.

    Args:
        name: name of the model and its pretraining.
        weights_sha256: SHA-256 of the weights, because several files may have the same name.
        dim: dimension of the teacher's embeddings; the stored embeddings concatenate all teachers in order.
        logit_scale: factor by which the teacher multiplies cosine similarities.
        image: preprocessing of the teacher's images: size, interpolation, mean and std.
        spec: the teacher's spec as JSON; None for a model that was built without a spec.
    """

    name: str
    weights_sha256: str
    dim: int = attrs.field(validator=validators.gt(0))
    logit_scale: float
    image: ImageInput
    spec: Mapping[str, Any] | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True, field_transformer=strict)
class CaptionerEntry:
    """The captioner that generated a set of synthetic captions, with its weights, seed and settings.

    Args:
        name: name of the model and its pretraining.
        weights_sha256: SHA-256 of the model's weights.
        caption_set: name of the set of captions, such as `syn_text_NAME`.
        seed: seed for the sampling of captions.
        spec: settings of the captioner as JSON: number of captions, top-p, ...
    """

    name: str
    weights_sha256: str
    caption_set: str
    seed: int
    spec: Mapping[str, Any]


_FRACTION = (validators.ge(0), validators.le(1))


@attrs.frozen(kw_only=True, field_transformer=strict)
class ViewAgreement:
    """Share of stored augmented views that the teachers match to the same caption as the original image.

    Only captions that belong to exactly one image are compared.

    Args:
        num_samples: number of compared images.
        num_views: number of stored views of the compared images.
        agreement: share of the views with the same nearest caption as the original image.
        plain_accuracy: share of the original images whose nearest caption belongs to the image.
        view_accuracy: share of the views whose nearest caption belongs to the image of the view.
    """

    num_samples: int = attrs.field(validator=validators.gt(1))
    num_views: int = attrs.field(validator=validators.gt(0))
    agreement: float = attrs.field(validator=_FRACTION)
    plain_accuracy: float = attrs.field(validator=_FRACTION)
    view_accuracy: float = attrs.field(validator=_FRACTION)

    @property
    def ratio(self) -> float | None:
        """Ratio of the views' accuracy to the original images' accuracy; None if the original images' accuracy is 0."""
        return self.view_accuracy / self.plain_accuracy if self.plain_accuracy else None

    def __str__(self) -> str:
        return (
            f"the teachers match {self.agreement:.0%} of the stored views to the same caption as the original image "
            f"({self.num_views:,} views of {self.num_samples:,} images); the nearest caption is correct for "
            f"{self.plain_accuracy:.1%} of the original images and {self.view_accuracy:.1%} of the views "
            f"(chance: {1 / self.num_samples:.1%})"
        )


@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcementCard:
    """The data card of reinforced shards: teachers, captioners, augmentation, layout and sample counts.

    Args:
        teachers: the teachers in the order of their concatenated embeddings; empty until embeddings are computed.
        captioners: the captioners of the synthetic captions, in the order of their runs.
        augmentation: the augmentation policy; None until embeddings are computed.
        num_augmentations: number of stored augmentations per image.
        seed: seed of the augmentations.
        layout: storage layout of the embeddings.
        versions: package versions of the first run, since decoding and resizing may differ between versions.
        num_shards: number of finished shards with samples.
        num_samples: number of samples in the shards.
        num_bytes: total size of the shards, in bytes.
        skipped: number of skipped samples, by reason.
        agreement: the teachers' agreement on the stored views of the first shard; None if not measured.
    """

    teachers: tuple[TeacherEntry, ...] = ()
    captioners: tuple[CaptionerEntry, ...] = ()
    augmentation: AugmentationSpec | None = None
    num_augmentations: int = attrs.field(default=0, validator=validators.ge(0))
    seed: int = 0
    layout: Layout
    versions: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    num_shards: int = attrs.field(default=0, eq=False, validator=validators.ge(0))
    num_samples: int = attrs.field(default=0, eq=False, validator=validators.ge(0))
    num_bytes: int = attrs.field(default=0, eq=False, validator=validators.ge(0))
    skipped: Mapping[str, int] = attrs.field(factory=dict, eq=False)
    agreement: ViewAgreement | None = attrs.field(default=None, eq=False)

    @property
    def teacher_dims(self) -> tuple[int, ...]:
        """Embedding dimension of every teacher, for the distillation loss."""
        return tuple(teacher.dim for teacher in self.teachers)

    @property
    def teacher_logit_scales(self) -> tuple[float, ...]:
        """Logit scales of the teachers, for the distillation loss."""
        return tuple(teacher.logit_scale for teacher in self.teachers)

    def in_columns(self, columns: tuple[int, int]) -> ReinforcementCard:
        """Return the card restricted to the teachers in a range of columns, with an exclusive end.

        Raises:
            ValueError: if the range is empty, or starts or ends within the columns of a teacher.
        """
        ends = [0, *itertools.accumulate(self.teacher_dims)]
        if not set(columns) <= set(ends) or columns[0] >= columns[1]:
            raise ValueError(
                f"columns {columns} do not match whole teachers, which have the columns {[*itertools.pairwise(ends)]}"
            )
        teachers = self.teachers[ends.index(columns[0]) : ends.index(columns[1])]
        # The agreement was measured with all teachers, so it does not apply to a subset of the teachers.
        return attrs.evolve(self, teachers=teachers, agreement=self.agreement if teachers == self.teachers else None)

    def differences(self, loss: Mapping[str, Sequence[float]]) -> list[str]:
        """Return the differences between a loss and the card's teachers, one sentence per loss option.

        Args:
            loss: `teacher_dims` and `teacher_logit_scales` of the loss, or one of the two.
        """
        names = ", ".join(teacher.name for teacher in self.teachers) or "no teachers"
        return [
            f"{name} is {tuple(value)}, but the data was reinforced by {names} with {own}"
            for name, value in loss.items()
            if tuple(value) != (own := getattr(self, name))
        ]


def read_card(directory: str | os.PathLike[str]) -> ReinforcementCard:
    """Return the card of a directory of reinforced shards.

    Args:
        directory: local path or URL.

    Raises:
        ValueError: if the card is missing or cannot be read.
    """
    card = find_card(directory)
    if card is None:
        raise ValueError(f"{os.fspath(directory)} has no {CARD}, so this library did not reinforce the data")
    return card


def find_card(directory: str | os.PathLike[str]) -> ReinforcementCard | None:
    """Return the card of a directory, or None if the directory has no card.

    Args:
        directory: local path or URL.

    Raises:
        ValueError: if the card cannot be read.
    """
    path = storage.join(os.fspath(directory), CARD)
    content = storage.read_if_exists(path, limit=_MAX_CARD_BYTES)
    if content is None:
        return None
    try:
        return from_json(content.decode(), ReinforcementCard)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def card_of_shards(shards: Sequence[str]) -> ReinforcementCard | None:
    """Return the card of shards in one or several folders, or None if there is no card.

    The card is next to the shards or in a common parent folder.

    Args:
        shards: paths or URLs of the shards.

    Raises:
        ValueError: if a card cannot be read, folders were reinforced differently, or only some folders have a card.
    """
    find = cache(find_card)
    folders = list(dict.fromkeys(map(shard_folder, shards)))
    most_above = MOST_FOLDERS_ABOVE if len(folders) > 1 else 0
    places = [next(filter(find, folders_above(folder, most_above)), None) for folder in folders]
    first = next(filter(None, places), None)
    if first is None:
        return None
    card = find(first)
    if None in places:
        raise ValueError(
            f"{first} was reinforced and has a {CARD}, but {folders[places.index(None)]} has none, so the content of "
            "its samples is unknown; use the folders separately, or add the missing card to the second folder"
        )
    other = next((place for place in places if place is not None and find(place) != card), None)
    if other is not None:
        raise ValueError(
            f"{first} and {other} were reinforced differently, so their teacher embeddings cannot be "
            "combined; use the folders separately"
        )
    return card


def write_card(directory: str | os.PathLike[str], card: ReinforcementCard) -> None:
    """Write the card atomically as `reinforcement.json` in a directory."""
    storage.write_text(storage.join(os.fspath(directory), CARD), to_json(card, indent=1) + "\n")

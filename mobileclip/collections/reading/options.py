"""How pictures are indexed, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs
from attrs import validators

from mobileclip.collections.reading.videos import Frames
from mobileclip.data.skips import Skip
from mobileclip.engines import SetAside
from mobileclip.hardware.precision import FastPrecision
from mobileclip.strict import strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class IndexOptions:
    """How pictures are indexed.

    Args:
        batch_size: pictures encoded at once.
        num_workers: processes that read and decode beside the model; one reads in this process. With an engine, its
            workers do both, and this does not count.
        decode: `fast` decodes a JPEG no larger than the model needs, see `read_tower_image`; `exact` decodes all of it.
        video_frames: see `look_at_video`.
        video_seconds: see `look_at_video`.
        precision: what an image tower on a CPU may compute in, as far as `mobileclip.optimize` finds it exact enough.
        segment_rows: pictures after which what is finished is written down.
        segment_seconds: after which it is written down as well.
        show_progress: whether to show how far it is.
    """

    batch_size: int = attrs.field(default=32, validator=validators.gt(0))
    num_workers: int = attrs.field(default=1, validator=validators.gt(0))
    decode: Literal["fast", "exact"] = "fast"
    video_frames: Frames = "seconds"
    video_seconds: float = attrs.field(default=10.0, validator=validators.ge(1))
    precision: FastPrecision = "bfloat16"
    segment_rows: int = attrs.field(default=4096, validator=validators.gt(0))
    segment_seconds: float = attrs.field(default=10.0, validator=validators.gt(0))
    show_progress: bool = True


@attrs.frozen(kw_only=True)
class IndexReport:
    """What became of the pictures.

    Args:
        num_encoded: new or changed ones.
        num_known: of new files or changed ones whose content had an embedding: moved files, copies, and files that
            were touched.
        num_unchanged: that were not looked at again.
        num_removed: that are gone, or moved.
        num_unreadable: files that could not be read before, and have not changed.
        unreadable: why each file that could not be read now was not, naming it.
        uninstalled: what must be installed for other files, with the command that does, and how many files these are;
            they are tried again each time.
        left_out: files of folders that are no pictures.
        set_aside: files that an engine has given up; the next run tries them again.
    """

    num_encoded: int
    num_known: int
    num_unchanged: int
    num_removed: int
    num_unreadable: int
    unreadable: tuple[str, ...]
    uninstalled: Mapping[str, int]
    left_out: tuple[Skip, ...]
    set_aside: tuple[SetAside, ...] = ()

    def __str__(self) -> str:
        """Say it in a line."""
        parts = [f"{self.num_encoded:,} encoded"]
        parts += [f"{self.num_known:,} recognised by their content"] if self.num_known else []
        parts += [f"{self.num_unchanged:,} as before"] if self.num_unchanged else []
        parts += [f"{self.num_removed:,} gone from where they were"] if self.num_removed else []
        unreadable = self.num_unreadable + len(self.unreadable)
        parts += [f"{unreadable:,} cannot be read"] if unreadable else []
        parts += [f"{sum(self.uninstalled.values()):,} wait for an extra"] if self.uninstalled else []
        parts += [f"{len(self.set_aside):,} set aside"] if self.set_aside else []
        return ", ".join(parts)

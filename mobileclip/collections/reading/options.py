"""The options of an index update."""

from __future__ import annotations

import attrs
from attrs import validators

from mobileclip.collections.reading.videos import Frames
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inputs import Decode
from mobileclip.strict import strict


@attrs.frozen(kw_only=True, field_transformer=strict)
class IndexOptions:
    """The settings of an index update: how pictures are read, and how often rows are written.

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
    decode: Decode = "fast"
    video_frames: Frames = "seconds"
    video_seconds: float = attrs.field(default=10.0, validator=validators.ge(1))
    precision: FastPrecision = "bfloat16"
    segment_rows: int = attrs.field(default=4096, validator=validators.gt(0))
    segment_seconds: float = attrs.field(default=10.0, validator=validators.gt(0))
    show_progress: bool = True

"""Small videos, made by PyAV: a few coloured tiles a scene, so that every scene is told from the others."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image


def scene(seed, size=(96, 64)):
    """Return the picture of a scene."""
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 64, (4, 6, 3)) + draw.integers(0, 190, 3)
    return Image.fromarray(values.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def film(path, scenes, *, codec="mpeg4", keys=5, shape=1, notes=(), options=()):
    """Write a video of five frames a second that shows each scene for two seconds.

    Args:
        path: of the file.
        scenes: seeds.
        codec: FFmpeg's encoder.
        keys: frames from one that stands on its own to the next.
        shape: width of a pixel, of its height.
        notes: metadata, by name.
        options: of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", options=dict(options)) as out:
        out.metadata.update(dict(notes))
        stream = out.add_stream(codec, rate=5)
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(shape)
        stream.gop_size = keys
        if codec == "libvpx":
            stream.options = {"deadline": "realtime", "cpu-used": "8"}  # a tenth of the time
        for seed in scenes:
            for _ in range(10):
                out.mux(stream.encode(av.VideoFrame.from_image(scene(seed))))
        out.mux(stream.encode(None))
    return path

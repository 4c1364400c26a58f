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


def film(
    path,
    scenes,
    *,
    seconds=2,
    rate=5,
    codec="mpeg4",
    keys=5,
    size=(96, 64),
    shape=1,
    notes=(),
    options=(),
):
    """Write a video that shows each scene for some seconds.

    Args:
        path: of the file.
        scenes: seeds.
        seconds: of each scene.
        rate: frames a second.
        codec: FFmpeg's encoder.
        keys: frames from one that stands on its own to the next.
        size: in pixels.
        shape: width of a pixel, of its height.
        notes: metadata, by name.
        options: of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", options=dict(options)) as out:
        out.metadata.update(dict(notes))
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(shape)
        stream.gop_size = keys
        if codec == "libvpx":
            stream.options = {"deadline": "realtime", "cpu-used": "8"}  # a tenth of the time
        for seed in scenes:
            picture = scene(seed, size)
            for _ in range(seconds * rate):
                out.mux(stream.encode(av.VideoFrame.from_image(picture)))
        out.mux(stream.encode(None))
    return path

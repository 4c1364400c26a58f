"""Where in a picture of an index what is asked for comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.collections.searching.matches import Match
from mobileclip.collections.searching.pictures import read_encoded
from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.reading import read_tower_image
from mobileclip.data.images.transform import LIMITS, Pixels
from mobileclip.datasets.videos.opening import VideoFile
from mobileclip.inference.explaining import attribution
from mobileclip.inference.image_text_model import ImageTextModel


def explained(
    clip: ImageTextModel, match: Match, direction: NDArray[np.float32], *, reduced: bool
) -> NDArray[np.float32]:
    """Return what each place of a picture adds to its similarity with a direction: a map that sums to it.

    Shape:
        `(rows, columns)`, of the square in the picture's middle that the model sees.

    Args:
        clip: the model of the index.
        match: the picture, whose file is read again.
        direction: that is asked for, of shape (dim,) and unit length.
        reduced: whether the pictures of the index were decoded no larger than they need to be.

    Raises:
        ValueError: if the model cannot say.
        ImageError: if the picture cannot be read any more.
    """
    pixels = torch.from_numpy(_pixels_of(clip, match, reduced=reduced))
    shares = attribution(clip.local_embeddings(pixels[None]), torch.from_numpy(direction)[None])
    return np.asarray(shares[0, 0].numpy())


def _pixels_of(clip: ImageTextModel, match: Match, *, reduced: bool) -> Pixels:
    name = f"the picture {match.name!r}"
    if match.time is not None:
        with VideoFile(Path(match.path), LIMITS, "the video") as video:
            return clip.transform.pixels(video.frame(match.time), name=name)
    (data,) = read_encoded([match])
    if data is None:
        raise ImageError(
            "missing_file", f"{name} cannot be read any more; bring the index up to date: `mobileclip index`"
        )
    return read_tower_image(data, clip.transform, reduced=reduced, name=name).pixels

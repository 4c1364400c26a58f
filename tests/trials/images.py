"""Images from strangers: each is read as a picture, and decoded as a sample, exactly and fast."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from mobileclip.data import AugmentationParams, BadSampleError, ImageError, crop_augmentation, load_image
from mobileclip.data.loading.examples import SourceImage
from tests.trials.harness import Case, Outcome
from tests.trials.image_cases import Make, beyond_limits, broken, disguises, sound


def cases() -> Iterator[Case]:
    """Return all of them."""
    groups = (
        ("in disguise", "not_an_image", disguises()),
        ("broken", "", broken()),
        ("odd but sound", None, sound()),
    )
    for group, reason, made in groups:
        for name, make in made.items():
            yield Case(name=f"{group}: {name}", attempt=partial(attempt, make, reason))
    for name, (reason, make) in beyond_limits().items():
        yield Case(name=f"beyond limits: {name}", attempt=partial(attempt, make, reason))


def attempt(make: Make, reason: str | None, folder: Path) -> Outcome:
    """Use an image as a picture and as a sample; what becomes of it must be what is wanted, and the same each time.

    Args:
        make: makes the file.
        reason: why it is refused, empty for any reason; None where it is a picture.
        folder: where to.
    """
    data = make()
    path = folder / "photo.jpg"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [_size_or_reason(partial(_load, path))]
        found += [_size_or_reason(partial(_replay, data, decode)) for decode in ("exact", "fast")]
    refused = [isinstance(one, str) for one in found]
    assert all(refused) or not any(refused), f"refused once and accepted once: {found}"
    assert all(refused) == (reason is not None), f"{reason or 'accepted'} was wanted: {found}"
    assert not reason or {one for one in found if isinstance(one, str)} == {reason}, f"{reason} was wanted: {found}"
    assert [entry.name for entry in folder.iterdir()] == ["photo.jpg"]
    return "refused" if all(refused) else "accepted"


def _size_or_reason(use: Callable[[], tuple[int, int]]) -> tuple[int, int] | str:
    try:
        return use()
    except (ImageError, BadSampleError) as error:
        told = str(error)
        reason = error.reason.removeprefix("image_")
    assert reason in told or 20 < len(told) < 500, told
    return reason


def _load(path: Path) -> tuple[int, int]:
    image = load_image(path)
    assert image.mode == "RGB"
    assert np.asarray(image).shape == (image.height, image.width, 3)
    return image.size


def _replay(data: bytes, decode: str) -> tuple[int, int]:
    source = SourceImage(data)
    width, height = source.size
    params = AugmentationParams(crop=(0, 0, min(height, 64), min(width, 64)))
    (pixels,) = source.replay([crop_augmentation(16)], params, decode)
    assert pixels.shape == (16, 16, 3)
    return width, height

"""Contract suite of captioners: captions depend on the image and its seed alone."""

from __future__ import annotations

import torch
from PIL import Image

from mobileclip.reinforce.captioners import Captioner, CaptionerSpec
from mobileclip.strict import split_lines
from mobileclip.testing.specs import check_spec
from tests.contracts.teachers import check_identity

_SIZES = ((40, 32), (32, 48), (64, 64), (48, 24), (96, 24))
_SEEDS = [7, 2**40, 0, 7, 1]


def check_captioner(spec: CaptionerSpec) -> None:
    """Check a captioner's identity, and that its captions depend on the image and its seed alone.

    Its spec is a value (`check_spec`). What it builds has a name, the hash of its weights and a number of captions, the
    same when it is built again. Every image, of whatever shape, gets so many captions: lines of text that are not
    empty. An image and its seed decide them, whatever comes with it, in whatever order, whatever random numbers the
    process has drawn, and whichever time the captioner is built. No image has no captions. Random numbers of the
    process are left as they are.

    Args:
        spec: of a registered class.

    Raises:
        AssertionError: if something of it is not so.
    """
    check_spec(spec, family=CaptionerSpec)
    captioner, again = spec.build(), spec.build()
    assert isinstance(captioner, Captioner)
    check_identity(captioner, again, "num_captions")
    assert captioner.num_captions > 0
    with torch.random.fork_rng(devices=()):
        _check_captions(captioner, again)


def _check_captions(captioner: Captioner, again: Captioner) -> None:
    images = [Image.effect_mandelbrot(size, (-3, -2.5, 2, 2.5), 20 + size[0]).convert("RGB") for size in _SIZES]
    state = torch.get_rng_state()
    together = _asked(captioner, images, _SEEDS)
    assert torch.equal(torch.get_rng_state(), state), "it draws from the random numbers of the process"
    assert [len(captions) for captions in together] == [captioner.num_captions] * len(images)
    for text in (text for captions in together for text in captions):
        assert isinstance(text, str)
        assert text.strip() == text
        assert len(split_lines(text)) == 1
    alone = [_asked(captioner, [image], [seed])[0] for image, seed in zip(images, _SEEDS, strict=True)]
    assert alone == together
    assert _asked(captioner, images[::-1], _SEEDS[::-1]) == together[::-1]
    torch.manual_seed(99)
    assert _asked(captioner, images, _SEEDS) == together
    assert _asked(again, images, _SEEDS) == together
    assert _asked(captioner, [], []) == []


def _asked(captioner: Captioner, images: list[Image.Image], seeds: list[int]) -> list[tuple[str, ...]]:
    return [tuple(captions) for captions in captioner.caption(images, seeds)]

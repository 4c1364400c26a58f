"""Contract suite of captioners: captions depend on the image and its seed alone."""

from __future__ import annotations

import torch
from PIL import Image

from mobileclip.reinforce.captioners import Captioner, CaptionerSpec
from mobileclip.strict import split_lines
from mobileclip.testing.comparing import first_line
from mobileclip.testing.specs import check_spec
from tests.contracts.teachers import check_identity

_SIZES = ((40, 32), (32, 48), (64, 64), (48, 24), (96, 24))


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
        AssertionError: if something of it is not so; the message says what.

    Examples:
        >>> check_captioner(0.5)
        Traceback (most recent call last):
        AssertionError: float is not an attrs class; make it one with @attrs.frozen(kw_only=True)
    """
    check_spec(spec, family=CaptionerSpec)
    name = type(spec).__name__
    captioner, again = spec.build(), spec.build()
    assert isinstance(captioner, Captioner), (
        f"what {name} builds is no Captioner: it lacks a property or a method of one"
    )
    check_identity(name, captioner.name, captioner.weights_sha256)
    assert captioner.num_captions > 0, f"{name} writes {captioner.num_captions} captions for an image"
    for fact in ("name", "weights_sha256", "num_captions"):
        one, other = getattr(captioner, fact), getattr(again, fact)
        assert one == other, f"the {fact} of {name} is {other!r} when it is built again, not {one!r}"
    with torch.random.fork_rng(devices=()):
        _check_captions(name, captioner, again)


def _check_captions(name: str, captioner: Captioner, again: Captioner) -> None:
    images = [Image.effect_mandelbrot(size, (-3, -2.5, 2, 2.5), 20 + size[0]).convert("RGB") for size in _SIZES]
    seeds = [7, 2**40, 0, 7, 1]
    state = torch.get_rng_state()
    together = _asked(name, captioner, images, seeds)
    assert torch.equal(torch.get_rng_state(), state), f"{name} draws from the random numbers of the process"
    assert len(together) == len(images), f"{name} gives captions of {len(together)} images, of {len(images)}"
    for captions in together:
        wanted = captioner.num_captions
        assert len(captions) == wanted, f"{name} gives {len(captions)} captions of an image, and says {wanted}"
        for text in captions:
            is_line = isinstance(text, str) and text.strip() == text and len(split_lines(text)) == 1
            assert is_line, f"{name} writes {text!r}, which is no line of text without blanks around it"
    alone = [_asked(name, captioner, [image], [seed])[0] for image, seed in zip(images, seeds, strict=True)]
    assert alone == together, f"captions of {name} are others for an image alone: {alone}, not {together}"
    turned = _asked(name, captioner, images[::-1], seeds[::-1])[::-1]
    assert turned == together, f"captions of {name} are others in another order: {turned}, not {together}"
    torch.manual_seed(99)
    found = _asked(name, captioner, images, seeds)
    assert found == together, f"captions of {name} are others after torch.manual_seed: {found}, not {together}"
    found = _asked(name, again, images, seeds)
    assert found == together, f"captions of {name} are others by the same captioner, built again: {found}"
    assert _asked(name, captioner, [], []) == [], f"{name} gives captions where there is no image"


def _asked(name: str, captioner: Captioner, images: list[Image.Image], seeds: list[int]) -> list[tuple[str, ...]]:
    try:
        return [tuple(captions) for captions in captioner.caption(images, seeds)]
    except Exception as error:
        raise AssertionError(f"{name} gives no captions of {len(images)} images: {first_line(error)}") from error

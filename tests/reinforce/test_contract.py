"""Each way in which a teacher or a captioner may break its contract is told."""

from __future__ import annotations

import itertools
import math
import re

import attrs
import pytest
import torch

from mobileclip.inputs import ImageInput
from mobileclip.reinforce import CaptionerSpec, TeacherSpec
from mobileclip.reinforce.captioners import captioners
from mobileclip.reinforce.teachers import teachers
from tests.contracts.captioners import check_captioner
from tests.contracts.teachers import check_teacher


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(teachers, "_values", teachers._values | {"odd": OddTeacherSpec})
    monkeypatch.setattr(captioners, "_values", captioners._values | {"odd": OddCaptionerSpec})


class Odd:
    numbers = itertools.count()

    def __init__(self, odd, **facts):
        self.number = next(self.numbers)
        for fact, value in {"name": "odd", "weights_sha256": "0" * 64, **facts}.items():
            setattr(self, fact, value)
        wrong = {
            "nameless": ("name", " "),
            "hashless": ("weights_sha256", "0"),
            "renamed": ("name", f"odd {self.number}"),
            "no dim": ("dim", 0),
            "no captions": ("num_captions", 0),
            "no scale": ("logit_scale", math.inf),
            "no contract": ("image", 8),
        }
        if odd in wrong:
            setattr(self, *wrong[odd])
        self.odd = odd


class OddTeacher(Odd):
    def encode_images(self, pixels):
        found = self._odd(pixels.float().mean((2, 3)))
        if self.odd == "overwriting":
            pixels.zero_()
        return found

    def encode_texts(self, texts):
        return self._odd(torch.tensor([[len(text), text.count("a"), 1.0] for text in texts]).reshape(-1, 3))

    def _odd(self, found):
        match self.odd:
            case "narrow":
                found = found[:, 1:]
            case "learning":
                found.requires_grad_()
            case "broken":
                found = found / 0
            case "blind":
                found = torch.ones_like(found)
            case "hungry" if not len(found):
                raise IndexError("there is no first one")
            case "together":
                found = found - found.mean(0) / 2
            case "another":
                found = found + self.number * 100
            case "drawing":
                torch.rand(1)
        return found


class OddCaptioner(Odd):
    def caption(self, images, seeds):
        written = [(f"{image.width} {seed}", "two") for image, seed in zip(images, seeds, strict=True)]
        match self.odd:
            case "few":
                written = written[1:]
            case "short":
                written = [captions[:1] for captions in written]
            case "lines":
                written = [(f"{one}\n", other) for one, other in written]
            case "together":
                written = [(one, f"{len(images)}") for one, _ in written]
            case "first" if len(images) > 1 and images[0].width > 90:
                written = [(one, "first") for one, _ in written]
            case "seeded":
                written = [(one, f"{torch.initial_seed()}") for one, _ in written]
            case "drawing":
                torch.rand(1)
            case "another":
                written = [(one, f"{self.number}") for one, _ in written]
            case "hungry" if not images:
                raise IndexError("there is no first one")
        return written


@attrs.frozen(kw_only=True)
class OddTeacherSpec(TeacherSpec):
    odd: str = ""

    def build(self, device="cpu"):  # noqa: ARG002
        return OddTeacher(self.odd, dim=3, logit_scale=1.0, image=ImageInput(size=8)) if self.odd != "other" else 1


@attrs.frozen(kw_only=True)
class OddCaptionerSpec(CaptionerSpec):
    odd: str = ""

    def build(self, device="cpu"):  # noqa: ARG002
        return OddCaptioner(self.odd, num_captions=2) if self.odd != "other" else 1


def test_the_smallest_keep_it():
    check_teacher(OddTeacherSpec())
    check_captioner(OddCaptionerSpec())


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("other", "what OddTeacherSpec builds is no Teacher"),
        ("nameless", "the name of OddTeacherSpec is empty"),
        ("hashless", "the hash of the weights of OddTeacherSpec is '0'"),
        ("no contract", "the image contract of OddTeacherSpec is 8, no ImageInput"),
        ("no dim", "the dim of OddTeacherSpec is 0"),
        ("no scale", "the logit scale of OddTeacherSpec is inf"),
        ("renamed", "the name of OddTeacherSpec is 'odd"),
        ("narrow", "embeddings of images of OddTeacherSpec have the shape (5, 2), not (5, 3)"),
        ("learning", "embeddings of images of OddTeacherSpec have gradients"),
        ("broken", "embeddings of images of OddTeacherSpec are not finite numbers"),
        ("blind", "embeddings of images of OddTeacherSpec are one and the same"),
        ("hungry", "images of OddTeacherSpec are not embedded: IndexError: there is no first one"),
        ("together", "embeddings of images of OddTeacherSpec are others asked one by one"),
        ("another", "embeddings of images of OddTeacherSpec are others by the same teacher, built again"),
        ("overwriting", "the images of OddTeacherSpec are changed where they are embedded"),
        ("drawing", "OddTeacherSpec draws from the random numbers of the process"),
    ],
)
def test_each_way_to_break_that_of_teachers_is_told(odd, said):
    with pytest.raises(AssertionError, match=re.escape(said)):
        check_teacher(OddTeacherSpec(odd=odd))


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("other", "what OddCaptionerSpec builds is no Captioner"),
        ("nameless", "the name of OddCaptionerSpec is empty"),
        ("hashless", "the hash of the weights of OddCaptionerSpec is '0'"),
        ("no captions", "OddCaptionerSpec writes 0 captions for an image"),
        ("renamed", "the name of OddCaptionerSpec is 'odd"),
        ("few", "OddCaptionerSpec gives captions of 4 images, of 5"),
        ("short", "OddCaptionerSpec gives 1 captions of an image, and says 2"),
        ("lines", r"OddCaptionerSpec writes '40 7\n', which is no line of text"),
        ("together", "captions of OddCaptionerSpec are others for an image alone"),
        ("first", "captions of OddCaptionerSpec are others in another order"),
        ("seeded", "captions of OddCaptionerSpec are others after torch.manual_seed"),
        ("drawing", "OddCaptionerSpec draws from the random numbers of the process"),
        ("another", "captions of OddCaptionerSpec are others by the same captioner, built again"),
        ("hungry", "OddCaptionerSpec gives no captions of 0 images: IndexError: there is no first one"),
    ],
)
def test_each_way_to_break_that_of_captioners_is_told(odd, said):
    with pytest.raises(AssertionError, match=re.escape(said)):
        check_captioner(OddCaptionerSpec(odd=odd))

"""A batch of samples to reinforced ones: caption, draw, replay, and have every teacher encode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mobileclip.data import (
    AugmentationParams,
    BadSampleError,
    ImageError,
    ImageTextSample,
    ReinforcedSample,
    Skip,
    augmentation_rng,
    decode_image,
    hash_image,
)
from mobileclip.data.samples.members import check_layout
from mobileclip.data.skips import made_or_skip
from mobileclip.engines import FatalError, reason_of
from mobileclip.machine import raise_machine_fault
from mobileclip.reinforce.captioners import CAPTION_VERSION, Captioner, caption_seed, caption_sets
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import NotFiniteError, TeacherEnsemble

NOT_FINITE = "not_finite"

_PLAIN_SIZE = (64, 64)


@attrs.frozen(kw_only=True, eq=False)
class _Decoded:
    sample: ImageTextSample
    image: Image.Image


@attrs.frozen(kw_only=True, eq=False)
class _Augmented:
    """A sample with its augmentations and, by size, the pixels they give: (augmentations, size, size, 3)."""

    sample: ImageTextSample
    params: tuple[AugmentationParams, ...]
    pixels: Mapping[int, npt.NDArray[np.uint8]]


@attrs.frozen(kw_only=True, eq=False)
class BatchEncoder:
    """Makes reinforced samples, or where there are no teachers, captioned ones.

    Args:
        spec: the choices.
        teachers: whose embeddings are stored; None for captions alone.
        captioner: who writes synthetic captions; None for none.
        shard: where the samples come from, for messages.
        caption_versions: of the seeds of captions, by their set; others are new.
    """

    spec: ReinforcementSpec
    teachers: TeacherEnsemble | None
    captioner: Captioner | None
    shard: str
    caption_versions: Mapping[str, int] = attrs.field(factory=dict)

    def __call__(self, samples: Sequence[ImageTextSample]) -> list[ImageTextSample | Skip]:
        """Return for every sample what is to be stored, or why there is nothing."""
        results = [self._decode(sample) for sample in samples]
        if self.captioner is not None:
            for name, captioner in caption_sets(self.captioner, self.spec.caption_set).items():
                results = self._caption(results, captioner, name)
        decoded = [result for result in results if isinstance(result, _Decoded)]
        finished = iter(self._finish(decoded))
        return [result if isinstance(result, Skip) else next(finished) for result in results]

    def _decode(self, sample: ImageTextSample) -> _Decoded | Skip:
        def decoded() -> _Decoded:
            if sample.image is None:
                raise BadSampleError("missing_image", "there is no image; `mobileclip data join` brings images in")
            check_layout(sample, self.spec.layout)
            background = None if self.teachers is None else self.teachers.background
            image = decode_image(sample.image, orient=False, background=background, limits=self.spec.limits)
            return _Decoded(sample=sample, image=image)

        return made_or_skip(decoded, key=sample.key, shard=self.shard)

    def _caption(self, results: Sequence[_Decoded | Skip], captioner: Captioner, name: str) -> list[_Decoded | Skip]:
        decoded = [result for result in results if isinstance(result, _Decoded)]
        try:
            pictures = [self._upright(one) for one in decoded]
            captions = iter(captioner.caption(pictures, [self._seed(one, name) for one in decoded]))
            return [
                result if isinstance(result, Skip) else self._captioned(result, next(captions), name)
                for result in results
            ]
        except Exception:  # noqa: BLE001 - each is tried alone, which tells whose fault it is
            # One image of a shape that the captioner cannot take costs the others nothing.
            return [
                result if isinstance(result, Skip) else self._caption_alone(result, captioner, name)
                for result in results
            ]

    def _caption_alone(self, one: _Decoded, captioner: Captioner, name: str) -> _Decoded | Skip:
        try:
            (texts,) = captioner.caption([self._upright(one)], [self._seed(one, name)])
        except ImageError as error:
            reason, key = f"image_{error.reason}", one.sample.key
            return Skip(reason=reason, key=key, shard=self.shard, detail=f"for the captioner: {error.message}")
        except Exception as error:  # noqa: BLE001 - what a stranger's image makes the captioner raise
            raise_machine_fault(error)
            self._require_captions(captioner)
            reason, key = type(error).__name__, one.sample.key
            return Skip(reason=reason, key=key, shard=self.shard, detail=f"for the captioner: {error}")
        return self._captioned(one, texts, name)

    def _require_captions(self, captioner: Captioner) -> None:
        """Make sure that a plain picture can be captioned: what fails for another one is then that one's fault."""
        try:
            captioner.caption([Image.new("RGB", _PLAIN_SIZE)], [0])
        except Exception as error:
            raise_machine_fault(error)
            raise FatalError(f"the captioner cannot caption a plain picture either: {reason_of(error)}") from error

    def _upright(self, one: _Decoded) -> Image.Image:
        """Return what a captioner sees; stored augmentations are of the pixels as they are encoded."""
        assert one.sample.image is not None, "it was decoded"
        return decode_image(one.sample.image, limits=self.spec.limits)

    def _seed(self, one: _Decoded, name: str) -> int:
        version = self.caption_versions.get(name, CAPTION_VERSION)
        return caption_seed(self.spec.seed, one.sample.key, name, version=version)

    def _captioned(self, one: _Decoded, texts: Sequence[str], name: str) -> _Decoded:
        synthetic = {**one.sample.syn_captions, name: tuple(texts)}
        return attrs.evolve(one, sample=attrs.evolve(one.sample, syn_captions=synthetic))

    def _finish(self, decoded: Sequence[_Decoded]) -> Sequence[ImageTextSample | Skip]:
        if self.teachers is None or not decoded:
            return [one.sample for one in decoded]
        augmented = [
            made_or_skip(partial(self._augment, one, self.teachers), key=one.sample.key, shard=self.shard)
            for one in decoded
        ]
        usable = [one for one in augmented if isinstance(one, _Augmented)]
        encoded = iter(self._encode_or_skip(usable, self.teachers) if usable else ())
        return [one if isinstance(one, Skip) else next(encoded) for one in augmented]

    def _encode_or_skip(
        self, augmented: Sequence[_Augmented], teachers: TeacherEnsemble
    ) -> list[ReinforcedSample | Skip]:
        """Encode the samples together, or where that fails, each alone, to find whose fault it is."""
        try:
            return list(self._encode(augmented, teachers))
        except Exception as error:
            if len(augmented) > 1:
                return [result for one in augmented for result in self._encode_or_skip([one], teachers)]
            raise_machine_fault(error)
            reason = NOT_FINITE if isinstance(error, NotFiniteError) else type(error).__name__
            if reason != NOT_FINITE and not self._works(teachers):
                raise FatalError(f"the teachers cannot encode a plain picture either: {reason_of(error)}") from error
            return [Skip(reason=reason, key=augmented[0].sample.key, shard=self.shard, detail=str(error))]

    def _works(self, teachers: TeacherEnsemble) -> bool:
        """Whether a plain sample can be encoded: what fails for another one is then that one's fault."""
        sample = ImageTextSample(key="plain", captions=("a photo",))
        plain = _Decoded(sample=sample, image=Image.new("RGB", _PLAIN_SIZE))
        try:
            self._encode([self._augment(plain, teachers)], teachers)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the teachers
            raise_machine_fault(error)
            return False
        return True

    def _augment(self, one: _Decoded, teachers: TeacherEnsemble) -> _Augmented:
        policies = [attrs.evolve(self.spec.augmentation, size=size) for size in teachers.image_sizes]
        params = tuple(
            self.spec.augmentation.sample(augmentation_rng(self.spec.seed, one.sample.key, index), one.image.size)
            for index in range(self.spec.num_augmentations)
        )
        pixels = {
            policy.size: np.stack([np.asarray(policy.apply(one.image, each)) for each in params]) for policy in policies
        }
        return _Augmented(sample=one.sample, params=params, pixels=pixels)

    def _encode(self, augmented: Sequence[_Augmented], teachers: TeacherEnsemble) -> list[ReinforcedSample]:
        pixels = {
            size: torch.from_numpy(np.concatenate([one.pixels[size] for one in augmented])).permute(0, 3, 1, 2)
            for size in teachers.image_sizes
        }
        image_emb = teachers.encode_images(pixels).numpy().reshape(len(augmented), self.spec.num_augmentations, -1)
        # A caption that comes twice is encoded once.
        texts = {
            text: None
            for one in augmented
            for group in (one.sample.captions, *one.sample.syn_captions.values())
            for text in group
        }
        row = {text: index for index, text in enumerate(texts)}
        text_emb = teachers.encode_texts(list(texts)).numpy()

        def rows(group: Sequence[str]) -> npt.NDArray[np.float32]:
            return text_emb[[row[text] for text in group]]

        return [
            ReinforcedSample(
                **plain_fields(one.sample),
                augmentations=one.params,
                image_sha256=None if one.sample.image is None else hash_image(one.sample.image),
                image_emb=emb,
                text_emb=rows(one.sample.captions),
                syn_text_emb={name: rows(group) for name, group in one.sample.syn_captions.items()},
            )
            for one, emb in zip(augmented, image_emb, strict=True)
        ]


def plain_fields(sample: ImageTextSample) -> dict[str, Any]:
    """Return what a sample holds as an image-text sample, by field."""
    return {field.name: getattr(sample, field.name) for field in attrs.fields(ImageTextSample)}

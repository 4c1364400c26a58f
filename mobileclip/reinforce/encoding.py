"""A batch of samples to reinforced ones: draw, replay, and have every teacher encode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
import numpy.typing as npt
import torch

from mobileclip.data import (
    AugmentationParams,
    BadSampleError,
    ImageTextSample,
    ReinforcedSample,
    Skip,
    augmentation_rng,
    decode_image,
)
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble

Captions = tuple[Sequence[str], Mapping[str, Sequence[str]]]
CaptionSource = Callable[[ImageTextSample], Captions]


def own_captions(sample: ImageTextSample) -> Captions:
    """Return the sample's own captions as the real ones, and no synthetic ones."""
    return sample.captions, {}


@attrs.frozen(kw_only=True, eq=False)
class _Prepared:
    """A sample with its augmentations and, by size, the pixels they give: (augmentations, size, size, 3)."""

    sample: ImageTextSample
    params: tuple[AugmentationParams, ...]
    pixels: dict[int, npt.NDArray[np.uint8]]
    captions: tuple[str, ...]
    syn_captions: dict[str, tuple[str, ...]]


@attrs.frozen(kw_only=True, eq=False)
class BatchEncoder:
    """Makes reinforced samples.

    Args:
        spec: the choices.
        teachers: whose embeddings are stored.
        captions: what is written under an image.
        shard: where the samples come from, for messages.
    """

    spec: ReinforcementSpec
    teachers: TeacherEnsemble
    captions: CaptionSource
    shard: str

    def __call__(self, samples: Sequence[ImageTextSample]) -> list[ReinforcedSample | Skip]:
        """Return for every sample the reinforced one, or why there is none."""
        results = [self._prepare_or_skip(sample) for sample in samples]
        prepared = [result for result in results if isinstance(result, _Prepared)]
        finished = iter(self._encode(prepared)) if prepared else iter(())
        return [result if isinstance(result, Skip) else next(finished) for result in results]

    def _prepare_or_skip(self, sample: ImageTextSample) -> _Prepared | Skip:
        try:
            return self._prepare(sample)
        except BadSampleError as error:
            return Skip(reason=error.reason, key=sample.key, shard=self.shard, detail=error.detail)

    def _prepare(self, sample: ImageTextSample) -> _Prepared:
        if sample.image is None:
            raise BadSampleError("missing_image", f"{sample.key} has no image; join the images with the captions first")
        image = decode_image(sample.image)
        sizes = self.teachers.image_sizes
        policies = {size: attrs.evolve(self.spec.augmentation, size=size) for size in sizes}
        params = tuple(
            self.spec.augmentation.sample(augmentation_rng(self.spec.seed, sample.key, index), image.size)
            for index in range(self.spec.num_augmentations)
        )
        pixels = {
            size: np.stack([np.asarray(policy.apply(image, one)) for one in params])
            for size, policy in policies.items()
        }
        captions, syn_captions = self.captions(sample)
        if not captions:
            raise BadSampleError("no_caption", f"{sample.key} has no real caption; at least one is expected")
        synthetic = {name: tuple(texts) for name, texts in syn_captions.items()}
        return _Prepared(sample=sample, params=params, pixels=pixels, captions=tuple(captions), syn_captions=synthetic)

    def _encode(self, prepared: Sequence[_Prepared]) -> list[ReinforcedSample]:
        pixels = {
            size: torch.from_numpy(np.concatenate([one.pixels[size] for one in prepared])).permute(0, 3, 1, 2)
            for size in self.teachers.image_sizes
        }
        image_emb = self.teachers.encode_images(pixels).numpy()
        texts = {
            text: None for one in prepared for group in (one.captions, *one.syn_captions.values()) for text in group
        }
        row = {text: index for index, text in enumerate(texts)}
        text_emb = self.teachers.encode_texts(list(texts)).numpy()
        count = self.spec.num_augmentations
        return [
            ReinforcedSample(
                **{
                    field.name: getattr(one.sample, field.name)
                    for field in attrs.fields(ImageTextSample)
                    if field.name != "captions"
                },
                captions=one.captions,
                augmentations=one.params,
                image_emb=image_emb[index * count : (index + 1) * count],
                text_emb=text_emb[[row[text] for text in one.captions]],
                syn_captions=one.syn_captions,
                syn_text_emb={
                    name: text_emb[[row[text] for text in group]] for name, group in one.syn_captions.items()
                },
            )
            for index, one in enumerate(prepared)
        ]

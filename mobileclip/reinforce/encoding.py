"""Encoding of sample batches with teachers, also during training, and a measurement of the teachers' agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mobileclip.data import (
    AugmentationParams,
    AugmentationSpec,
    BadSampleError,
    BatchSource,
    ImageError,
    ImageTextSample,
    ReinforcedBatch,
    ReinforcedSample,
    Skip,
    Tokenizer,
    ViewAgreement,
    augmentation_rng,
    decode_image,
    hash_image,
)
from mobileclip.data.images.metadata import exif_transpose
from mobileclip.data.loading.batch import ChangedBatches
from mobileclip.data.samples.members import check_layout
from mobileclip.data.samples.sample import SYN_TEXT
from mobileclip.data.skips import made_or_skip
from mobileclip.engines import FatalError, reason_of
from mobileclip.inference.encoding import encode_each
from mobileclip.machine import raise_machine_fault
from mobileclip.reinforce.captioners import Captioner, caption_seed, caption_sets
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import NotFiniteError, TeacherEnsemble
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

# Below this agreement, most stored image embeddings describe something other than the image.
LOW_AGREEMENT = 0.5
CHANGED_BY = "larger crops or fewer augmentation operations raise the agreement; in a recipe, use --augmentation crop"
_FEWEST = 2

_Matrix = npt.NDArray[np.float32]


def plain_augmentation(size: int) -> AugmentationSpec:
    """Return an augmentation that only resizes the largest central square.

    Args:
        size: side length of the square output, in pixels.
    """
    return AugmentationSpec(size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), num_operations=0)


def plain_views(images: Sequence[Image.Image], policy: AugmentationSpec) -> Tensor:
    """Return images without augmentation, resized to the policy's size.

    Shape:
        (images, 3, size, size) uint8.

    Args:
        images: original images, at least one.
        policy: see `plain_augmentation`.
    """
    views = [np.asarray(policy.apply(one, policy.sample(augmentation_rng(0, "", 0), one.size))) for one in images]
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


def encode_plain(teachers: TeacherEnsemble, images: Sequence[bytes], spec: ReinforcementSpec) -> _Matrix:
    """Return the teachers' embeddings of images without augmentation.

    Shape:
        (images, sum of dims).

    Args:
        teachers: the ensemble.
        images: bytes of encoded images, such as JPEG.
        spec: options of the reinforcement; the function uses the limits, the batch size and the interpolation.
    """
    policies = [
        attrs.evolve(plain_augmentation(size), interpolation=spec.augmentation.interpolation)
        for size in teachers.image_sizes
    ]
    raw = partial(decode_image, orient=False, background=teachers.background, limits=spec.limits)

    def encode(batch: list[bytes]) -> _Matrix:
        decoded = [raw(one) for one in batch]
        return teachers.encode_images({policy.size: plain_views(decoded, policy) for policy in policies}).numpy()

    return np.stack(list(encode_each(images, encode, batch_size=spec.batch_size)))


def measure_agreement(
    samples: Sequence[ReinforcedSample], teachers: TeacherEnsemble, spec: ReinforcementSpec
) -> ViewAgreement | None:
    """Measure the share of stored views that the teachers assign to the same image as the view without augmentation.

    The teachers assign a view to the image with the most similar caption, real or synthetic. The measurement ignores
    captions that several images share, and images without a unique caption.

    Args:
        samples: reinforced samples with images.
        teachers: the teachers of the samples' stored embeddings.
        spec: options of the reinforcement.

    Returns:
        The measurement; None if fewer than two samples have unique captions, or if a teacher's embedding of an image
        without augmentation is not finite.
    """
    count = Counter(text for sample in samples for text in dict(_captions(sample)))
    own = [{text: row for text, row in _captions(sample) if count[text] == 1} for sample in samples]
    compared = [(sample, captions) for sample, captions in zip(samples, own, strict=True) if captions]
    if len(compared) < _FEWEST:
        return None
    texts = np.stack([row for _, captions in compared for row in captions.values()])
    owner = np.repeat(np.arange(len(compared)), [len(captions) for _, captions in compared])
    try:
        encoded = encode_plain(teachers, [sample.image or b"" for sample, _ in compared], spec)
    except NotFiniteError as error:
        logger.warning("the teachers' agreement on the stored views was not measured: %s", error)
        return None
    plain = owner[(encoded @ texts.T).argmax(-1)]
    views = owner[(np.stack([sample.image_emb for sample, _ in compared]) @ texts.T).argmax(-1)]
    places = np.arange(len(compared))
    return ViewAgreement(
        num_samples=len(compared),
        num_views=views.size,
        agreement=float((views == plain[:, None]).mean()),
        plain_accuracy=float((plain == places).mean()),
        view_accuracy=float((views == places[:, None]).mean()),
    )


def _captions(sample: ReinforcedSample) -> Iterator[tuple[str, _Matrix]]:
    yield from zip(sample.captions, sample.text_emb, strict=True)
    for name, texts in sample.syn_captions.items():
        yield from zip(texts, sample.syn_text_emb[name], strict=True)


NOT_FINITE = "not_finite"

_PLAIN_SIZE = (64, 64)


@attrs.define(eq=False)
class _Item:
    """A sample in progress, with the results so far.

    Args:
        sample: the sample, with the captions and embeddings computed so far.
        image: the decoded image.
        params: parameters of the augmentations.
        pixels: augmented images by size, each of shape (augmentations, size, size, 3).
    """

    sample: ImageTextSample
    image: Image.Image = attrs.field(factory=partial(Image.new, "RGB", _PLAIN_SIZE))
    params: tuple[AugmentationParams, ...] = ()
    pixels: Mapping[int, npt.NDArray[np.uint8]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, eq=False)
class BatchEncoder:
    """Adds captions and teacher embeddings to samples; without teachers, adds only captions.

    Args:
        spec: options of the reinforcement.
        teachers: teachers of the stored embeddings; None for captions only.
        captioner: captioner of the synthetic captions; None for no captions.
        shard: name of the samples' shard, for messages.
    """

    spec: ReinforcementSpec
    teachers: TeacherEnsemble | None
    captioner: Captioner | None
    shard: str

    def __call__(self, samples: Sequence[ImageTextSample]) -> list[ImageTextSample | Skip]:
        """Return each reinforced sample, or a `Skip` with the reason to skip the sample."""
        results = self._each([_Item(sample) for sample in samples], self._decode)
        sets = caption_sets(self.captioner, self.spec.caption_set) if self.captioner is not None else {}
        for name, captioner in sets.items():
            make = partial(self._caption, captioner=captioner, name=name)
            plain = partial(captioner.caption, [Image.new("RGB", _PLAIN_SIZE)], [0])
            skip = partial(self._skip, plain=plain, who="captioner cannot caption", prefix="for the captioner: ")
            results = self._together(results, make, skip)
        if self.teachers is not None:
            augment = partial(self._augment, teachers=self.teachers)
            encode = partial(self._encode, teachers=self.teachers)

            def encode_plain() -> None:
                one = _Item(ImageTextSample(key="plain", captions=("a photo",)))
                augment(one)
                encode([one])

            skip = partial(self._skip, plain=encode_plain, who="teachers cannot encode")
            results = self._together(self._each(results, augment), encode, skip)
        return [one if isinstance(one, Skip) else one.sample for one in results]

    def _each(self, items: Sequence[_Item | Skip], make: Callable[[_Item], _Item]) -> list[_Item | Skip]:
        return [
            one if isinstance(one, Skip) else made_or_skip(partial(make, one), key=one.sample.key, shard=self.shard)
            for one in items
        ]

    def _together(
        self,
        items: Sequence[_Item | Skip],
        make: Callable[[Sequence[_Item]], None],
        skip: Callable[[_Item, Exception], Skip],
    ) -> list[_Item | Skip]:
        """Process all items together; after an error, process each item separately to find the item at fault."""
        left = [one for one in items if isinstance(one, _Item)]
        try:
            if left:
                make(left)
        except Exception as error:  # noqa: BLE001 - any error of an item
            if len(left) > 1:
                return [result for one in items for result in self._together([one], make, skip)]
            raise_machine_fault(error)
            return [one if isinstance(one, Skip) else skip(one, error) for one in items]
        return list(items)

    def _skip(self, item: _Item, error: Exception, *, plain: Callable[[], object], who: str, prefix: str = "") -> Skip:
        """Return the reason to skip an item.

        Raises:
            FatalError: if the teachers or the captioner also fail on a blank test image.
        """
        reason, detail = type(error).__name__, str(error)
        if isinstance(error, NotFiniteError):
            reason = NOT_FINITE
        elif isinstance(error, ImageError):
            reason, detail = f"image_{error.reason}", error.message
        else:
            try:
                plain()
            except Exception as other:
                raise_machine_fault(other)
                raise FatalError(f"the {who} a blank test image either: {reason_of(other)}") from other
        return Skip(reason=reason, key=item.sample.key, shard=self.shard, detail=f"{prefix}{detail}")

    def _decode(self, item: _Item) -> _Item:
        if item.sample.image is None:
            raise BadSampleError("missing_image", "the sample has no image; add images with `mobileclip data join`")
        check_layout(item.sample, self.spec.layout)
        background = None if self.teachers is None else self.teachers.background
        item.image = decode_image(item.sample.image, orient=False, background=background, limits=self.spec.limits)
        return item

    def _caption(self, items: Sequence[_Item], captioner: Captioner, name: str) -> None:
        seeds = [caption_seed(self.spec.seed, one.sample.key, name) for one in items]
        captions = captioner.caption([self._upright(one) for one in items], seeds)
        for one, texts in zip(items, captions, strict=True):
            one.sample = attrs.evolve(one.sample, syn_captions={**one.sample.syn_captions, name: tuple(texts)})

    def _upright(self, item: _Item) -> Image.Image:
        """Return the upright image for the captioner; stored augmentations refer to the image before rotation."""
        if self.teachers is not None and self.teachers.background is not None:
            assert item.sample.image is not None, "it was decoded"
            return decode_image(item.sample.image, limits=self.spec.limits)
        return exif_transpose(item.image, item.image.info["orientation"])

    def _augment(self, item: _Item, teachers: TeacherEnsemble) -> _Item:
        image, policy = item.image, self.spec.augmentation
        item.params = tuple(
            policy.sample(augmentation_rng(self.spec.seed, item.sample.key, index), image.size)
            for index in range(self.spec.num_augmentations)
        )
        item.pixels = {
            size: np.stack([np.asarray(attrs.evolve(policy, size=size).apply(image, each)) for each in item.params])
            for size in teachers.image_sizes
        }
        return item

    def _encode(self, items: Sequence[_Item], teachers: TeacherEnsemble) -> None:
        pixels = {
            size: torch.from_numpy(np.concatenate([one.pixels[size] for one in items])).permute(0, 3, 1, 2)
            for size in teachers.image_sizes
        }
        image_emb = teachers.encode_images(pixels).numpy().reshape(len(items), self.spec.num_augmentations, -1)
        groups = [group for one in items for group in (one.sample.captions, *one.sample.syn_captions.values())]
        # A caption that occurs twice is encoded once.
        row = {text: index for index, text in enumerate(dict.fromkeys(text for group in groups for text in group))}
        text_emb = teachers.encode_texts(list(row)).numpy()

        def rows(group: Sequence[str]) -> _Matrix:
            return text_emb[[row[text] for text in group]]

        for one, emb in zip(items, image_emb, strict=True):
            one.sample = ReinforcedSample(
                **plain_fields(one.sample),
                augmentations=one.params,
                image_sha256=None if one.sample.image is None else hash_image(one.sample.image),
                image_emb=emb,
                text_emb=rows(one.sample.captions),
                syn_text_emb={name: rows(group) for name, group in one.sample.syn_captions.items()},
            )


def plain_fields(sample: ImageTextSample) -> dict[str, Any]:
    """Return a sample's image-text fields by name."""
    return {field.name: getattr(sample, field.name) for field in attrs.fields(ImageTextSample)}


@attrs.frozen(kw_only=True, eq=False)
class OnlineTeachers(ChangedBatches[ReinforcedBatch]):
    """Batches with teacher embeddings computed during training; pass this object to `train` as `batches`.

    Args:
        batches: batches with online images at the teachers' sizes; see `online` of `ReinforcedPipelineSpec`.
        teachers: teachers that encode the images and captions of every batch.
        captioner: captioner for every augmented image, at the largest online size; None for the source's captions.
        tokenizer: the student's tokenizer, for the captioner's captions; required with a captioner.
        seed: random seed of the captioner.

    Raises:
        ValueError: if there is a captioner but no tokenizer; or, while streaming, if the batches lack the images or the
            captions.

    Source: MobileCLIP, table 4d.
    """

    batches: BatchSource[ReinforcedBatch]
    teachers: TeacherEnsemble
    captioner: Captioner | None = None
    tokenizer: Tokenizer | None = None
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        """Check that a captioner has a tokenizer for its captions."""
        if self.captioner is not None and self.tokenizer is None:
            raise ValueError("a captioner also needs the student's tokenizer; pass tokenizer as well")

    def changed(self, batch: ReinforcedBatch) -> ReinforcedBatch:
        """Return the batch with teacher embeddings and, if there is a captioner, the captioner's captions."""
        return self._embedded(batch if self.captioner is None else self._captioned(batch, self.captioner))

    def _captioned(self, batch: ReinforcedBatch, captioner: Captioner) -> ReinforcedBatch:
        images = self._images(batch)
        pixels = images[max(images)].permute(0, 2, 3, 1).numpy()
        seeds = [caption_seed(self.seed, key, SYN_TEXT) for key in batch.keys]
        written = captioner.caption([Image.fromarray(one) for one in pixels], seeds)
        captions = tuple(texts[0] for texts in written)
        assert self.tokenizer is not None, "checked when this was made"
        return attrs.evolve(batch, syn_captions=captions, syn_text=self.tokenizer(captions))

    def _embedded(self, batch: ReinforcedBatch) -> ReinforcedBatch:
        if batch.captions is None:
            raise ValueError("the batches have no captions for the teachers; set the pipeline's online image sizes")
        texts = [*batch.captions, *(batch.syn_captions or ())]
        text = self.teachers.encode_texts(texts)
        return attrs.evolve(
            batch,
            teacher_image=self.teachers.encode_images(self._images(batch)),
            teacher_text=text[: len(batch)],
            teacher_syn_text=text[len(batch) :] if batch.syn_captions else None,
        )

    def _images(self, batch: ReinforcedBatch) -> dict[int, torch.Tensor]:
        images = dict(batch.online_images or {})
        missing = [size for size in self.teachers.image_sizes if size not in images]
        if missing or not images:
            raise ValueError(
                f"the teachers need images of {', '.join(map(str, self.teachers.image_sizes))} pixels, but the batches "
                f"have {', '.join(map(str, images)) or 'none'}; set the pipeline's online={self.teachers.image_sizes}"
            )
        return images

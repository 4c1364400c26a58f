"""CLIP-like teachers for the emoji data set: pretrained image and sentence encoders with small trained heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import attrs
import numpy as np
import torch
from attrs import validators
from torch import Tensor

from examples.quickstart.emoji.heads import HeadData, HeadSpec, ProjectionHead, train_head
from examples.quickstart.emoji.joint import JointTeacher, write_tensors
from examples.quickstart.emoji.on_disk import DataSplit, DrawnDataset
from examples.quickstart.emoji.trunks import NUM_MEANS, ImageTrunk, TextTrunk, encoding_threads
from mobileclip.data import AugmentationSpec, ImageTextSample, augmentation_rng, decode_image
from mobileclip.inputs import ImageInput
from mobileclip.progress import track
from mobileclip.reinforce import TeacherEnsemble
from mobileclip.reinforce.encoding import plain_augmentation
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.tensor_files import file_sha256, read_tensors
from mobileclip.tensor_files.weights import weights_sha256

PROMPTS = ("{}", "an emoji of {}")
_BATCH = 8


def emoji_augmentation(size: int) -> AugmentationSpec:
    """Return the policy for drawings: DataCompDR's with larger crops, since a tenth of an emoji shows nothing.

    Args:
        size: side of the output, in pixels; translations scale with this side.
    """
    return AugmentationSpec(size=size, scale=(0.3, 1.0), reference_size=224, scale_translations=True)


def drawing_input(size: int) -> ImageInput:
    """Return the contract of a student of drawings: the same resizing as in training, on a white background.

    Args:
        size: side of the student's images, in pixels.
    """
    return ImageInput(size=size, interpolation=emoji_augmentation(size).interpolation, background="white")


@attrs.frozen(kw_only=True)
class EmojiTeacherSpec:
    """Settings of the ensemble.

    Args:
        image_size: side of the teachers' images, in pixels.
        heads: heads, one per teacher, with different features and seeds.
        num_augmentations: number of augmented views per image for training the heads, in addition to the plain image.
            With the same augmentation and seed, these are the first views of the reinforcement, so that each view is
            encoded only once.
        augmentation: the policy, at `image_size`.
        seed: seed of the augmentations.
        num_workers: number of encoding threads.
    """

    image_size: int = attrs.field(default=128, validator=validators.ge(32))
    heads: tuple[HeadSpec, ...] = (
        HeadSpec(name="broad", seed=1),
        HeadSpec(name="means", num_features=NUM_MEANS, seed=2),
    )
    num_augmentations: int = attrs.field(default=1, validator=validators.ge(0))
    augmentation: AugmentationSpec = attrs.field(factory=lambda: emoji_augmentation(128))
    seed: int = 0
    num_workers: int = attrs.field(default=2, validator=validators.gt(0))

    def __attrs_post_init__(self) -> None:
        if self.augmentation.size != self.image_size:
            raise ValueError(
                f"the augmentation makes images of {self.augmentation.size} pixels, but the teachers need "
                f"{self.image_size}; use the same size for both"
            )


def build_teachers(spec: EmojiTeacherSpec, dataset: DrawnDataset, output: Path) -> TeacherEnsemble:
    """Train the heads on the training split, or load already trained heads.

    Args:
        spec: settings of the ensemble.
        dataset: result of `build_dataset`.
        output: directory for the heads' weights.

    Raises:
        ValueError: if a package is missing, or `output` holds heads of another data set or with other settings.
    """
    image_trunk, text_trunk = ImageTrunk(spec.image_size), TextTrunk()
    output = Path(output)
    made_of = _made_of(spec, dataset)
    if not (output / "teachers.json").exists():
        data = head_data(spec, dataset.train, image_trunk, text_trunk)
        output.mkdir(parents=True, exist_ok=True)
        with encoding_threads(spec.num_workers) as pool:
            heads = pool.map(train_head, spec.heads, [data] * len(spec.heads))
            for head in track(heads, total=len(spec.heads), title="training heads", unit="heads"):
                path = output / f"{head.spec.name}.safetensors"
                write_tensors(path, head.state_dict(), {"spec": to_json(head.spec)})
        write_text(output / "teachers.json", made_of + "\n")
    found = (output / "teachers.json").read_text(encoding="utf-8")
    if found.strip() != made_of:
        raise ValueError(
            f"{output} holds teachers of another data set or with other settings; choose another directory, or delete "
            "this directory"
        )
    return TeacherEnsemble(
        [
            _load_teacher(output / f"{one.name}.safetensors", image_trunk=image_trunk, text_trunk=text_trunk)
            for one in spec.heads
        ]
    )


def head_data(spec: EmojiTeacherSpec, split: DataSplit, image_trunk: ImageTrunk, text_trunk: TextTrunk) -> HeadData:
    """Return the features of a split: of plain images, augmented images, and all captions."""
    samples = list(split.samples())
    captions = [all_captions(sample) for sample in samples]
    names = [[prompt.format(name) for name in split.class_names] for prompt in PROMPTS]
    texts = list(dict.fromkeys(text for group in (*captions, *names) for text in group))
    row = {text: index for index, text in enumerate(texts)}
    width = max(map(len, captions))
    return HeadData(
        image=encode_views(spec, samples, image_trunk),
        text=_encode_texts(spec, texts, text_trunk),
        # A sample with fewer captions repeats them in turn, so that all captions are almost equally likely.
        captions=torch.tensor([[row[group[index % len(group)]] for index in range(width)] for group in captions]),
        classes=torch.tensor([[row[name] for name in group] for group in names]),
        labels=torch.tensor(split.class_indices(samples)),
    )


def encode_views(spec: EmojiTeacherSpec, samples: Sequence[ImageTextSample], trunk: ImageTrunk) -> Tensor:
    """Return the trunk's features of the plain images and of `num_augmentations` augmented views per image.

    Shape:
        (1 + augmentations, samples, features) float16.
    """
    trunk.load()
    remaining = iter(samples)
    batches = list(iter(lambda: list(islice(remaining, _BATCH)), []))

    def encode(batch: Sequence[ImageTextSample]) -> Tensor:
        pixels = np.stack([view for sample in batch for view in _views(spec, sample)])
        features = trunk(torch.from_numpy(pixels).permute(0, 3, 1, 2)).half()
        return features.reshape(len(batch), -1, features.shape[-1]).transpose(0, 1)

    with encoding_threads(spec.num_workers) as pool:
        return torch.cat(
            list(track(pool.map(encode, batches), total=len(batches), title="teachers see pictures", unit="batches")), 1
        )


def _views(spec: EmojiTeacherSpec, sample: ImageTextSample) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    assert sample.image is not None, "the data set stores every picture"
    image = decode_image(sample.image)
    plain = plain_augmentation(spec.image_size)
    views = [plain.apply(image, plain.sample(augmentation_rng(0, sample.key, 0), image.size))]
    for index in range(spec.num_augmentations):
        params = spec.augmentation.sample(augmentation_rng(spec.seed, sample.key, index), image.size)
        views.append(spec.augmentation.apply(image, params))
    return [np.asarray(view) for view in views]


def all_captions(sample: ImageTextSample) -> list[str]:
    """Return the real and the synthetic captions of a sample."""
    return [*sample.captions, *(text for group in sample.syn_captions.values() for text in group)]


def _encode_texts(spec: EmojiTeacherSpec, texts: Sequence[str], trunk: TextTrunk) -> Tensor:
    trunk.load()
    # Texts of like length are encoded together, so every thread should get all lengths.
    parts = [texts[start::64] for start in range(64)]
    parts = [part for part in parts if part]
    with encoding_threads(spec.num_workers) as pool:
        for _ in track(pool.map(trunk, parts), total=len(parts), title="teachers read captions", unit="batches"):
            pass
    return trunk(texts)


def _made_of(spec: EmojiTeacherSpec, dataset: DrawnDataset) -> str:
    """Return the settings that define the heads: their spec and the training split, without the number of threads."""
    choices = json.loads(to_json(attrs.evolve(spec, num_workers=1)))
    return json.dumps({"teachers": choices, "train": dataset.card["splits"]["train"], "data": dataset.card["spec"]})


def _load_teacher(path: Path, *, image_trunk: ImageTrunk, text_trunk: TextTrunk) -> JointTeacher:
    state, metadata = read_tensors(path)
    spec = from_json(metadata.get("spec", ""), HeadSpec)
    head = ProjectionHead(spec, num_features=spec.first_feature + state["mean"].shape[0], text_dim=text_trunk.dim)
    head.load_state_dict(state)
    head.eval().requires_grad_(requires_grad=False)
    return JointTeacher(
        name=f"emoji-{spec.name}-{file_sha256(path)[:8]}",
        model=head,
        encode_pixels=lambda pixels: head.encode_image(image_trunk(pixels)),
        text_trunk=text_trunk,
        image=image_trunk.image,
        weights_sha256=weights_sha256(head.state_dict()),
    )

"""Teachers whose image side is trained whole: EfficientNet-Lite0, from ImageNet's weights, on nearly all drawings.

A teacher is worth its price only if it is better than what the student reaches alone, which heads on frozen features
are not by much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import torch
from attrs import validators
from torch import Tensor, nn
from torch.nn import functional as F

from examples.learning_efficiency.data import Roles
from examples.quickstart.emoji import emoji_augmentation
from examples.quickstart.emoji.efficientnet import HEAD_CHANNELS, MEAN, STD, EfficientNetLite0, folded_state
from examples.quickstart.emoji.teachers import PROMPTS
from examples.quickstart.emoji.trunks import TextTrunk, image_weights
from mobileclip.data import ImageTextSample, augmentation_rng, crop_augmentation, decode_image, normalize_pixels
from mobileclip.inputs import ImageInput
from mobileclip.progress import Progress
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import atomic_path
from mobileclip.tensor_files import read_tensors
from mobileclip.tensor_files.weights import weights_sha256
from mobileclip.terminal import console
from mobileclip.training import CosineSchedule

_MAX_LOGIT_SCALE = 100.0
_MAX_GRADIENT_NORM = 1.0
_WARMUP = 0.1
# Small batches stay in the processor's cache.
_MICRO_BATCH = 16


@attrs.frozen(kw_only=True)
class FineTuneSpec:
    """The choices of a teacher and of its training.

    Args:
        name: what it is called.
        image_size: side of the images that it sees, in pixels.
        dim: dim of the joint embedding.
        epochs: passes over the teachers' pictures.
        batch_size: pairs contrasted at once.
        learning_rate: peak of the cosine schedule, of the two projections and the logit scale.
        trunk_learning_rate: of the pretrained convolutions.
        weight_decay: of AdamW.
        weak_share: fraction of the pictures that are shown with the weak augmentation; the others get the strong one.
        seed: of the weights, the order, the augmentations and the choice of captions.
    """

    name: str
    image_size: int = attrs.field(default=64, validator=validators.ge(32))
    dim: int = attrs.field(default=256, validator=validators.gt(0))
    epochs: int = attrs.field(default=10, validator=validators.gt(0))
    batch_size: int = attrs.field(default=64, validator=validators.gt(1))
    learning_rate: float = attrs.field(default=2e-3, validator=validators.gt(0))
    trunk_learning_rate: float = attrs.field(default=3e-4, validator=validators.gt(0))
    weight_decay: float = attrs.field(default=0.05, validator=validators.ge(0))
    weak_share: float = attrs.field(default=0.25, validator=[validators.ge(0), validators.le(1)])
    seed: int = 0


class FineTunedModel(nn.Module):
    """Pictures through the whole network and a projection, sentence embeddings through a projection."""

    def __init__(self, spec: FineTuneSpec, *, text_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.trunk = EfficientNetLite0()
        self.image = nn.Linear(HEAD_CHANNELS, spec.dim)
        self.text = nn.Linear(text_dim, spec.dim)
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    @property
    def logit_scale(self) -> Tensor:
        """What similarities are multiplied with."""
        return self.log_scale.exp().clamp(max=_MAX_LOGIT_SCALE)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return normalised embeddings.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim).
        """
        contract = ImageInput(size=self.spec.image_size, interpolation="bicubic", mean=MEAN, std=STD)
        image = normalize_pixels(pixels, contract, memory_format=torch.channels_last)
        return F.normalize(self.image(self.trunk(image)), dim=-1)

    def encode_text(self, features: Tensor) -> Tensor:
        """Return normalised embeddings.

        Shape:
            (batch, text dim) -> (batch, dim).
        """
        return F.normalize(self.text(features), dim=-1)


@attrs.frozen(kw_only=True, eq=False)
class FineTunedTeacher:
    """A trained model as a teacher.

    Args:
        name: the model's name and a digest of its weights.
        model: into the joint space.
        text_trunk: texts to features.
        weights_sha256: hash of the weights.
    """

    name: str
    model: FineTunedModel
    text_trunk: TextTrunk
    weights_sha256: str

    @property
    def dim(self) -> int:
        """Dim of the joint embedding."""
        return self.model.spec.dim

    @property
    def logit_scale(self) -> float:
        """As the model learned it, to four digits."""
        return round(float(self.model.logit_scale), 2)

    @property
    def image(self) -> ImageInput:
        """The image contract."""
        return ImageInput(size=self.model.spec.image_size, interpolation="bicubic", mean=MEAN, std=STD)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return normalised embeddings.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim).
        """
        return torch.cat([self.model.encode_image(part) for part in torch.split(pixels, _MICRO_BATCH)])

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return normalised embeddings.

        Shape:
            (number of texts, dim).
        """
        return self.model.encode_text(self.text_trunk(texts))


def fine_tune(spec: FineTuneSpec, roles: Roles, text_trunk: TextTrunk) -> FineTunedModel:
    """Return a model trained to find a picture's captions among others', and its name among all names.

    Two terms of equal weight, as the quickstart's heads have them: contrast within the batch, where pictures of one
    concept count as matches of each other's captions, and cross-entropy over the names of all concepts.

    Args:
        spec: the choices.
        roles: the teachers' pictures in them.
        text_trunk: texts to features.
    """
    torch.manual_seed(spec.seed)
    model = FineTunedModel(spec, text_dim=text_trunk.dim)
    model.trunk.load_state_dict(folded_state(image_weights()))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = _Batches(spec, roles, text_trunk)
    total = spec.epochs * batches.per_epoch
    schedules = {
        name: CosineSchedule(peak=peak, final=peak / 100, warmup_steps=int(_WARMUP * total), total_steps=total)
        for name, peak in (("trunk", spec.trunk_learning_rate), ("other", spec.learning_rate))
    }
    trunk = [*model.trunk.parameters()]
    others = [*model.image.parameters(), *model.text.parameters(), model.log_scale]
    optimizer = torch.optim.AdamW(
        [
            {"params": trunk, "name": "trunk"},
            {"params": others, "name": "other"},
        ],
        weight_decay=spec.weight_decay,
        fused=True,
    )
    with Progress(f"teacher {spec.name}", total=total, unit="pictures", console=console()) as progress:
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = schedules[group["name"]].learning_rate(step)
            optimizer.zero_grad()
            loss = _loss(model, batch)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
            optimizer.step()
            progress.advance(count=spec.batch_size, detail=f"loss {loss.item():.2f}")
    return model.eval().requires_grad_(requires_grad=False)


@attrs.frozen(kw_only=True, eq=False)
class _Batch:
    pixels: Tensor
    captions: Tensor
    names: Tensor
    labels: Tensor


class _Batches:
    """The batches of a training, drawn anew in every epoch; texts are encoded once, pictures decoded once."""

    def __init__(self, spec: FineTuneSpec, roles: Roles, text_trunk: TextTrunk) -> None:
        self.spec = spec
        self.samples = roles.teacher
        self.images = [decode_image(_image(sample)) for sample in self.samples]
        self.labels = torch.tensor(roles.labels(self.samples))
        self.captions = [
            [*sample.captions, *(text for group in sample.syn_captions.values() for text in group)]
            for sample in self.samples
        ]
        names = [[prompt.format(name) for name in roles.class_names] for prompt in PROMPTS]
        texts = list(dict.fromkeys(text for group in (*self.captions, *names) for text in group))
        self.row = {text: index for index, text in enumerate(texts)}
        self.features = encode_texts(texts, text_trunk)
        self.names = [torch.tensor([self.row[text] for text in group]) for group in names]
        self.policies = (crop_augmentation(spec.image_size), emoji_augmentation(spec.image_size))
        self.per_epoch = max(1, len(self.samples) // spec.batch_size)

    def __iter__(self) -> Iterator[_Batch]:
        generator = torch.Generator().manual_seed(self.spec.seed)
        draw = partial(torch.rand, generator=generator)
        for epoch in range(self.spec.epochs):
            order = torch.randperm(len(self.samples), generator=generator).tolist()
            for start in range(0, self.per_epoch * self.spec.batch_size, self.spec.batch_size):
                rows = order[start : start + self.spec.batch_size]
                views = [self._view(row, epoch, strong=bool(draw(1) >= self.spec.weak_share)) for row in rows]
                chosen = [self.captions[row][int(draw(1) * len(self.captions[row]))] for row in rows]
                yield _Batch(
                    pixels=torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2),
                    captions=self.features[[self.row[text] for text in chosen]],
                    names=self.features[self.names[int(draw(1) * len(self.names))]],
                    labels=self.labels[rows],
                )

    def _view(self, row: int, epoch: int, *, strong: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        image, policy = self.images[row], self.policies[strong]
        rng = augmentation_rng(self.spec.seed, f"teacher {self.samples[row].key}", epoch)
        return np.asarray(policy.apply(image, policy.sample(rng, image.size)))


def _loss(model: FineTunedModel, batch: _Batch) -> Tensor:
    image = model.encode_image(batch.pixels) * model.logit_scale
    same = (batch.labels[:, None] == batch.labels).float()
    logits, targets = image @ model.encode_text(batch.captions).T, same / same.sum(1, keepdim=True)
    contrast = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    return contrast + F.cross_entropy(image @ model.encode_text(batch.names).T, batch.labels)


def encode_texts(texts: Sequence[str], trunk: TextTrunk) -> Tensor:
    """Return the features of texts, showing progress.

    Shape:
        (number of texts, features).
    """
    part = 512
    with Progress("teachers read captions", total=len(texts), unit="texts", console=console()) as progress:
        for start in range(0, len(texts), part):
            trunk(texts[start : start + part])
            progress.advance(len(texts[start : start + part]))
    return trunk(texts)


def save_model(path: Path, model: FineTunedModel) -> None:
    """Write a trained model, atomically."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"spec": to_json(model.spec)})


def load_teacher(path: Path, text_trunk: TextTrunk) -> FineTunedTeacher:
    """Return what `save_model` wrote as a teacher."""
    state, metadata = read_tensors(path)
    spec = from_json(metadata.get("spec", ""), FineTuneSpec)
    model = FineTunedModel(spec, text_dim=text_trunk.dim)
    model.load_state_dict(state)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval().requires_grad_(requires_grad=False)
    digest = weights_sha256(model.state_dict())
    return FineTunedTeacher(
        name=f"emoji-{spec.name}-{digest[:8]}", model=model, text_trunk=text_trunk, weights_sha256=digest
    )


def _image(sample: ImageTextSample) -> bytes:
    assert sample.image is not None, "the data set stores every picture"
    return sample.image

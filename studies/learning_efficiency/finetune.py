"""Teachers with a completely trained image side, on all training images and on views of every strength.

A teacher pays off only if it is better than the student without a teacher, and heads on frozen features are not much
better.
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

from examples.quickstart.emoji.efficientnet import HEAD_CHANNELS, MEAN, STD, EfficientNetLite0, folded_state
from examples.quickstart.emoji.joint import JointModel, JointTeacher, contrast, write_tensors
from examples.quickstart.emoji.on_disk import DataSplit
from examples.quickstart.emoji.teachers import all_captions
from examples.quickstart.emoji.trunks import TextTrunk, image_weights
from mobileclip.data import ImageTextSample, augmentation_rng, decode_image, normalize_pixels
from mobileclip.encoders import AttentionSpec, MCiSpec, StageSpec
from mobileclip.inputs import ImageInput
from mobileclip.progress import Progress
from mobileclip.serialization import from_json, to_json
from mobileclip.tensor_files import read_tensors
from mobileclip.tensor_files.weights import weights_sha256
from mobileclip.terminal import console
from mobileclip.terminal.interruption import postponed
from mobileclip.training import CosineSchedule
from studies.learning_efficiency.variants import VIEWS, view_augmentation

PROMPTS = ("{}", "an icon of {}")
_MAX_GRADIENT_NORM = 1.0
_WARMUP = 0.1
# Small batches stay in the processor's cache.
_MICRO_BATCH = 16
_FEWEST_WITH_CLASSES = 2


@attrs.frozen(kw_only=True)
class FineTuneSpec:
    """Settings of a teacher and of its training.

    Args:
        name: name of the teacher.
        trunk: `efficientnet` for EfficientNet-Lite0 with ImageNet weights, or `mci` for RepMixer blocks and attention
            without pretraining.
        image_size: side of the teacher's images, in pixels.
        dim: width of the joint embedding.
        epochs: number of passes over the training images.
        batch_size: pairs contrasted at once.
        learning_rate: peak learning rate of the cosine schedule, for layers without pretraining.
        trunk_learning_rate: learning rate of the pretrained convolutions.
        weight_decay: weight decay of AdamW.
        seed: seed of the weights, the order, the views and the choice of captions.
    """

    name: str
    trunk: str = attrs.field(default="efficientnet", validator=validators.in_(("efficientnet", "mci")))
    image_size: int = attrs.field(default=64, validator=validators.ge(32))
    dim: int = attrs.field(default=256, validator=validators.gt(0))
    epochs: int = attrs.field(default=15, validator=validators.gt(0))
    batch_size: int = attrs.field(default=64, validator=validators.gt(1))
    learning_rate: float = attrs.field(default=2e-3, validator=validators.gt(0))
    trunk_learning_rate: float = attrs.field(default=3e-4, validator=validators.gt(0))
    weight_decay: float = attrs.field(default=0.05, validator=validators.ge(0))
    seed: int = 0

    @property
    def image(self) -> ImageInput:
        """The image contract."""
        return ImageInput(size=self.image_size, interpolation="bicubic", mean=MEAN, std=STD)


class FineTunedModel(JointModel):
    """Projects images, through the whole network, and sentence embeddings to one space."""

    spec: FineTuneSpec

    def __init__(self, spec: FineTuneSpec, *, text_dim: int) -> None:
        super().__init__(spec)
        if spec.trunk == "efficientnet":
            self.trunk: nn.Module = EfficientNetLite0()
            self.image: nn.Module = nn.Linear(HEAD_CHANNELS, spec.dim)
        else:
            self.trunk, self.image = _mci(spec).build(), nn.Identity()
        self.text = nn.Linear(text_dim, spec.dim)
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return normalised embeddings.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim).
        """
        image = normalize_pixels(pixels, self.spec.image, memory_format=torch.channels_last)
        return F.normalize(self.image(self.trunk(image)), dim=-1)


def _mci(spec: FineTuneSpec) -> MCiSpec:
    return MCiSpec(
        stages=(
            StageSpec(dim=32, depth=1),
            StageSpec(dim=64, depth=2),
            StageSpec(dim=128, depth=4),
            StageSpec(dim=256, depth=2, mixer=AttentionSpec()),
        ),
        embedding_dim=spec.dim,
        input=spec.image,
    )


def fine_tune(spec: FineTuneSpec, split: DataSplit, text_trunk: TextTrunk, path: Path) -> None:
    """Train a model to match images with their captions in the batch and their names among all classes, and write it.

    The loss has two terms of equal weight, like for the quickstart's heads: a contrastive loss within the batch, where
    images with the same name match each other's captions, and cross-entropy over the classes, for images with a class.
    Each epoch saves a checkpoint next to the file, and an interrupted training resumes from the checkpoint.

    Args:
        spec: settings of the study.
        split: the pictures.
        text_trunk: texts to features.
        path: file of the model.
    """
    torch.manual_seed(spec.seed)
    model = FineTunedModel(spec, text_dim=text_trunk.dim)
    if spec.trunk == "efficientnet":
        model.trunk.load_state_dict(folded_state(image_weights()))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = _Batches(spec, split, text_trunk)
    total = spec.epochs * batches.per_epoch
    pretrained = [*model.trunk.parameters()] if spec.trunk == "efficientnet" else []
    known = set(map(id, pretrained))
    groups = (
        (spec.trunk_learning_rate, pretrained),
        (spec.learning_rate, [one for one in model.parameters() if id(one) not in known]),
    )
    schedules = [
        CosineSchedule(peak=peak, final=peak / 100, warmup_steps=int(_WARMUP * total), total_steps=total)
        for peak, _ in groups
    ]
    optimizer = torch.optim.AdamW(
        [{"params": parameters} for _, parameters in groups], weight_decay=spec.weight_decay, fused=True
    )
    partial_path = path.with_suffix(".partial.safetensors")
    first = _resume(partial_path, model, optimizer) if partial_path.exists() else 0
    step = first * batches.per_epoch
    with Progress(f"teacher {spec.name}", total=total, done=step, unit="pictures", console=console()) as progress:
        for epoch in range(first, spec.epochs):
            with postponed():  # an epoch that is cut short would be done, and counted, again
                for batch in batches.epoch(epoch):
                    for group, schedule in zip(optimizer.param_groups, schedules, strict=True):
                        group["lr"] = schedule.learning_rate(step)
                    optimizer.zero_grad()
                    loss = _loss(model, batch)
                    torch.autograd.backward(loss)
                    nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
                    optimizer.step()
                    step += 1
                    progress.advance(count=spec.batch_size, detail=f"loss {loss.item():.2f}")
                about = {"spec": to_json(spec), "epochs": str(epoch + 1)}
                write_tensors(partial_path, _training_state(model, optimizer), about)
    write_tensors(path, model.state_dict(), {"spec": to_json(spec), "epochs": str(spec.epochs)})
    partial_path.unlink()


@attrs.frozen(kw_only=True, eq=False)
class _Batch:
    pixels: Tensor
    captions: Tensor
    classes: Tensor
    names: Tensor
    labels: Tensor


class _Batches:
    """The random batches of a training, different in every epoch; texts are encoded once, and images decoded once."""

    def __init__(self, spec: FineTuneSpec, split: DataSplit, text_trunk: TextTrunk) -> None:
        self.spec = spec
        self.samples = list(split.samples())
        self.images = [decode_image(_image(sample)) for sample in self.samples]
        labels = [sample.metadata["label"] for sample in self.samples]
        number = {name: index for index, name in enumerate(dict.fromkeys(labels))}
        position = {name: index for index, name in enumerate(split.class_names)}
        self.names = torch.tensor([number[label] for label in labels])
        # Names that fewer sets drew are no classes.
        self.labels = torch.tensor([position.get(label, -1) for label in labels])
        self.captions = [all_captions(sample) for sample in self.samples]
        classes = class_prompts(split.class_names)
        texts = list(dict.fromkeys(text for group in (*self.captions, *classes) for text in group))
        self.row = {text: index for index, text in enumerate(texts)}
        self.features = text_trunk(texts)
        self.classes = [self.features[[self.row[text] for text in group]] for group in classes]
        self.policies = [view_augmentation(view, spec.image_size) for view in VIEWS]
        self.per_epoch = max(1, len(self.samples) // spec.batch_size)

    def epoch(self, epoch: int) -> Iterator[_Batch]:
        generator = torch.Generator().manual_seed(self.spec.seed * 1_000_003 + epoch)
        draw = partial(torch.rand, generator=generator)
        order = torch.randperm(len(self.samples), generator=generator).tolist()
        for start in range(0, self.per_epoch * self.spec.batch_size, self.spec.batch_size):
            rows = order[start : start + self.spec.batch_size]
            views = [self._view(row, epoch, which=int(draw(1) * len(VIEWS))) for row in rows]
            chosen = [self.captions[row][int(draw(1) * len(self.captions[row]))] for row in rows]
            yield _Batch(
                pixels=torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2),
                captions=self.features[[self.row[text] for text in chosen]],
                classes=self.classes[int(draw(1) * len(self.classes))],
                names=self.names[rows],
                labels=self.labels[rows],
            )

    def _view(self, row: int, epoch: int, *, which: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        image, policy = self.images[row], self.policies[which]
        rng = augmentation_rng(self.spec.seed, f"teacher {self.samples[row].key}", epoch)
        return np.asarray(policy.apply(image, policy.sample(rng, image.size)))


def class_prompts(class_names: Sequence[str]) -> list[list[str]]:
    """Return the names in each prompt."""
    return [[prompt.format(name) for name in class_names] for prompt in PROMPTS]


def _loss(model: FineTunedModel, batch: _Batch) -> Tensor:
    image = model.encode_image(batch.pixels) * model.logit_scale
    contrasted = contrast(image, model.encode_text(batch.captions), batch.names)
    known = batch.labels >= 0
    if int(known.sum()) < _FEWEST_WITH_CLASSES:
        return contrasted
    return contrasted + F.cross_entropy(image[known] @ model.encode_text(batch.classes).T, batch.labels[known])


def _training_state(model: FineTunedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = {
        f"optimizer.{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    return {**{f"model.{name}": value for name, value in model.state_dict().items()}, **moments}


def _resume(path: Path, model: FineTunedModel, optimizer: torch.optim.Optimizer) -> int:
    """Restore the checkpoint of an unfinished training, and return its number of finished epochs."""
    tensors, metadata = read_tensors(path)
    if from_json(metadata["spec"], FineTuneSpec) != model.spec:
        raise ValueError(f"{path} is a teacher with other settings; delete it, or choose another folder")
    whole = optimizer.state_dict()
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, moment = rest.partition(".")
            whole["state"].setdefault(int(index), {})[moment] = value
    model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items() if "model." in name})
    optimizer.load_state_dict(whole)
    return int(metadata["epochs"])


def load_teacher(path: Path, text_trunk: TextTrunk) -> JointTeacher:
    """Return the teacher in a file of `fine_tune`."""
    state, metadata = read_tensors(path)
    spec = from_json(metadata.get("spec", ""), FineTuneSpec)
    model = FineTunedModel(spec, text_dim=text_trunk.dim)
    model.load_state_dict(state)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval().requires_grad_(requires_grad=False)
    digest = weights_sha256(model.state_dict())
    return JointTeacher(
        name=f"icons-{spec.name}-{digest[:8]}",
        model=model,
        encode_pixels=lambda pixels: torch.cat(list(map(model.encode_image, torch.split(pixels, _MICRO_BATCH)))),
        text_trunk=text_trunk,
        image=spec.image,
        weights_sha256=digest,
    )


def _image(sample: ImageTextSample) -> bytes:
    assert sample.image is not None, "the data set stores every picture"
    return sample.image

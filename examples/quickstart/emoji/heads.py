"""The trained heads of the teachers, which project features of both sides to one space by contrastive training."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor, nn
from torch.nn import functional as F

from examples.quickstart.emoji.joint import JointModel, contrast

# Features are clipped at this number of standard deviations.
_MAX_DEVIATION = 6.0


@attrs.frozen(kw_only=True)
class HeadSpec:
    """Settings of a head and of its training.

    Args:
        name: name of the head.
        first_feature: index of the first feature to use; features come from the last layer to the first.
        num_features: number of features from the first feature on; None for all.
        dim: width of the joint embedding.
        hidden_dim: width of the image side's hidden layer.
        dropout: dropout rate of the image features and of the hidden layer in training.
        epochs: number of passes over the training split.
        batch_size: number of pairs per batch.
        learning_rate: peak learning rate of the one-cycle schedule.
        weight_decay: weight decay of AdamW.
        seed: seed of the weights, the order and the choice of captions.
    """

    name: str
    first_feature: int = attrs.field(default=0, validator=validators.ge(0))
    num_features: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    dim: int = attrs.field(default=256, validator=validators.gt(0))
    hidden_dim: int = attrs.field(default=512, validator=validators.gt(0))
    dropout: float = attrs.field(default=0.2, validator=[validators.ge(0), validators.lt(1)])
    epochs: int = attrs.field(default=14, validator=validators.gt(0))
    batch_size: int = attrs.field(default=512, validator=validators.gt(1))
    learning_rate: float = attrs.field(default=2e-3, validator=validators.gt(0))
    weight_decay: float = attrs.field(default=0.1, validator=validators.ge(0))
    seed: int = 0


class ProjectionHead(JointModel):
    """Projects image features and text features to one space."""

    spec: HeadSpec
    mean: Tensor
    std: Tensor

    def __init__(self, spec: HeadSpec, *, num_features: int, text_dim: int) -> None:
        super().__init__(spec)
        self.features = slice(
            spec.first_feature, None if spec.num_features is None else spec.first_feature + spec.num_features
        )
        count = len(range(*self.features.indices(num_features)))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))
        self.hidden = nn.Linear(count, spec.hidden_dim)
        self.image = nn.Linear(spec.hidden_dim, spec.dim)
        self.text = nn.Linear(text_dim, spec.dim)
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def encode_image(self, features: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """Return normalised image embeddings.

        Shape:
            (batch, all features of the trunk) -> (batch, dim).

        Args:
            features: features of the trunk.
            dropout: random generator for dropout; None for no dropout.
        """
        deviations = ((features[:, self.features] - self.mean) / self.std).clamp(-_MAX_DEVIATION, _MAX_DEVIATION)
        hidden = F.gelu(self.hidden(self._drop(deviations, dropout)))
        return F.normalize(self.image(self._drop(hidden, dropout)), dim=-1)

    def _drop(self, features: Tensor, generator: torch.Generator | None) -> Tensor:
        """Drop like `nn.Dropout`, but with a separate generator, since several heads train in parallel."""
        if generator is None:
            return features
        kept = torch.rand(features.shape, generator=generator) >= self.spec.dropout
        return features * kept / (1 - self.spec.dropout)


@attrs.frozen(kw_only=True, eq=False)
class HeadData:
    """Features of the training split.

    Args:
        image: (views, samples, features); the views of a sample are the plain image and augmented images.
        text: (texts, text dim), all captions.
        captions: (samples, captions), row indices of `text`; samples with fewer captions repeat some.
        classes: (prompts, classes), row indices of `text` for the concepts' names.
        labels: (samples,), the samples' classes.
    """

    image: Tensor
    text: Tensor
    captions: Tensor
    classes: Tensor
    labels: Tensor


def train_head(spec: HeadSpec, data: HeadData) -> ProjectionHead:
    """Return a head trained to match an image with its captions in the batch, and with its name among all names.

    The loss has two terms of equal weight: CLIP's contrastive loss within the batch, where images of the same concept
    match each other's captions, and cross-entropy over the names of all concepts.

    Args:
        spec: settings of the head.
        data: features of the training split.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    head = _new_head(spec, data, generator)
    num_samples = data.labels.shape[0]
    batch_size = min(spec.batch_size, num_samples)
    steps_per_epoch = num_samples // batch_size
    optimizer = torch.optim.AdamW(head.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, spec.learning_rate, total_steps=spec.epochs * steps_per_epoch + 1, pct_start=0.1
    )
    for _ in range(spec.epochs):
        order = torch.randperm(num_samples, generator=generator)
        for start in range(0, steps_per_epoch * batch_size, batch_size):
            optimizer.zero_grad()
            torch.autograd.backward(_loss(head, data, order[start : start + batch_size], generator))
            optimizer.step()
            schedule.step()
    head.requires_grad_(requires_grad=False)
    return head


def _new_head(spec: HeadSpec, data: HeadData, generator: torch.Generator) -> ProjectionHead:
    head = ProjectionHead(spec, num_features=data.image.shape[-1], text_dim=data.text.shape[-1])
    for layer in (head.hidden, head.image, head.text):
        bound = layer.in_features**-0.5
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.zeros_(layer.bias)
    features = data.image[..., head.features].flatten(0, 1).float()
    head.mean.copy_(features.mean(0))
    head.std.copy_(features.std(0) + 1e-3)
    return head


def _loss(head: ProjectionHead, data: HeadData, rows: Tensor, generator: torch.Generator) -> Tensor:
    def choose(among: int, *shape: int) -> Tensor:
        return torch.randint(among, shape, generator=generator)

    labels = data.labels[rows]
    views = data.image[choose(data.image.shape[0], len(rows)), rows].float()
    captions = data.captions[rows, choose(data.captions.shape[1], len(rows))]
    names = data.classes[choose(data.classes.shape[0])]
    image = head.encode_image(views, generator) * head.logit_scale
    text = head.encode_text(data.text[captions])
    return contrast(image, text, labels) + F.cross_entropy(image @ head.encode_text(data.text[names]).T, labels)

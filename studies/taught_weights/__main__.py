"""Teaches a published architecture with a small model for minutes, so that its rankings are meaningful.

Command:   python -m studies.taught_weights --images DRAWINGS --texts TEXTS --output weights/s0.safetensors
Hardware:  any CPU
Time:      `--minutes` per tower; the image tower mostly trains with small images, then with its own image size
Result:    a checkpoint in training form, for `python -m benchmarks runtimes --weights weights`

The package has no published weights, and rankings of random weights say nothing about int8. The towers learn the
embeddings of `icons`, minus their common mean, rotated into the towers' space. Least squares give the token embeddings,
with a sum close to the text's embedding, and the last projection; training steps give the other weights. Finally, the
program prints the cosine with the teacher, and the margin of the first result over the second, for the teacher and the
student. If the student's margin is much smaller, increase `--minutes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import attrs
import torch
from attrs import validators
from torch import Tensor, nn
from torch.nn import functional

import mobileclip
from benchmarks.inputs import read_captions, read_images
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.encoders import DualEncoder, TextEncoderSpec, save_model
from mobileclip.progress import Progress
from mobileclip.storage import require_output
from mobileclip.terminal import console, say
from mobileclip.training import CosineSchedule
from mobileclip.training.cpu import fuse_for_cpu

_HELD_OUT = 64
_SMALL_PART, _OF_TEXTS = 0.6, 0.3
# How far embeddings of tokens spread, inputs that a projection is fitted to, and its ridge, of the mean square.
_TOKENS, _FITTED, _RIDGE = 0.02, 1536, 3.0


@attrs.frozen(kw_only=True)
class TaughtWeightsSpec:
    """Settings of the student, the teacher and the training.

    Args:
        images: training images, as files, folders or data sets.
        texts: texts, likewise.
        output: the file to write.
        model: name of the student model.
        teacher: name or file of the teacher.
        minutes: minutes of processor time per tower.
        num_images: number of images to read.
        num_texts: number of texts to read.
        small: initial side of the images, in pixels; later, the tower sees the model's own size.
        short: initial number of ids per text; later, the model's own context length.
        batch_size: number of images or texts per step with small inputs, four times the number with the model's own
            sizes.
        peak: peak learning rate of the image tower; the text tower, which begins with fitted weights, has 0.3 of this
            rate.
        towers: towers to teach; another tower keeps its random weights.
        seed: seed of weights and batches.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    output: Path
    model: str = "mobileclip2_s0"
    teacher: str = "icons"
    minutes: float = attrs.field(default=15, validator=validators.gt(0))
    num_images: int = attrs.field(default=20_000, validator=validators.gt(2 * _HELD_OUT))
    num_texts: int = attrs.field(default=20_000, validator=validators.gt(2 * _HELD_OUT))
    small: int = attrs.field(default=64, validator=validators.ge(32))
    short: int = attrs.field(default=16, validator=validators.ge(8))
    batch_size: int = attrs.field(default=64, validator=validators.ge(8))
    peak: float = attrs.field(default=1e-3, validator=validators.gt(0))
    towers: tuple[Literal["image", "text"], ...] = ("image", "text")
    seed: int = 0


def taught_weights(spec: TaughtWeightsSpec) -> None:
    """Teach the towers, and write both as one model."""
    require_output(spec.output, overwrite=False, suffixes=(".safetensors",))
    torch.manual_seed(spec.seed)
    model = cast("DualEncoder", mobileclip.build_model(spec.model))
    teacher = mobileclip.load(spec.teacher)
    own, wide = model.spec.image.embedding_dim, teacher.model.spec.image.embedding_dim
    rotation = torch.linalg.qr(torch.randn(own, own))[0][:wide]
    ways = {"image": _teach_images, "text": _teach_texts}
    taught = [ways[tower](spec, model, teacher, rotation) for tower in spec.towers]
    if len(taught) == len(ways):
        mine, others = (_lead(*embeddings) for embeddings in zip(*taught, strict=True))
        say(f"a first result is ahead by {mine:.4f}; of the teacher, by {others:.4f}")
    save_model(model, spec.output)


def _teach_images(
    spec: TaughtWeightsSpec, model: DualEncoder, teacher: mobileclip.ImageTextModel, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    own = model.spec.image
    smaller = attrs.evolve(own, input=attrs.evolve(own.input, size=spec.small))
    transform = ImageTransform(smaller.input)
    pixels = read_images(spec.images, transform, spec.num_images)
    with torch.no_grad():
        seen = functional.interpolate(_floats(pixels), teacher.model.spec.image.input.size, mode="area")
        targets = _centred(torch.cat([teacher.model.encode_image(one) for one in torch.split(seen, 256)])) @ rotation

    def small(rows: Tensor) -> Tensor:
        return transform.normalize(pixels[rows]).contiguous()

    def full(rows: Tensor) -> Tensor:
        return functional.interpolate(small(rows), own.input.size, mode="bilinear")

    tower = smaller.build()
    part, peak = _SMALL_PART, spec.peak
    _teach("image tower, small", spec, tower, small, targets, batch_size=spec.batch_size, part=part, peak=peak)
    model.image_encoder.load_state_dict(own.weights_for_size(tower.state_dict(), own.input.size))
    size = spec.batch_size // 4
    return _teach("image tower", spec, model.image_encoder, full, targets, batch_size=size, part=1 - part, peak=peak)


def _teach_texts(
    spec: TaughtWeightsSpec, model: DualEncoder, teacher: mobileclip.ImageTextModel, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    own = model.spec.text
    shorter = attrs.evolve(own, input=attrs.evolve(own.input, context_length=spec.short))
    texts = read_captions(spec.texts, spec.num_texts, seed=spec.seed)
    short, full, given = (Tokenizer(one.input)(texts) for one in (shorter, own, teacher.model.spec.text))
    with torch.no_grad():
        targets = _centred(torch.cat([teacher.model.encode_text(one) for one in torch.split(given, 256)])) @ rotation
    tower, encoder = shorter.build(), model.text_encoder
    _fit_tokens(tower, short, targets)
    _fit_projection(tower, short.__getitem__, targets)
    part, peak, size = _SMALL_PART, _OF_TEXTS * spec.peak, spec.batch_size
    _teach("text tower, short", spec, tower, short.__getitem__, targets, batch_size=size, part=part, peak=peak)
    learned = tower.state_dict()
    learned["position"] = torch.cat([learned["position"], encoder.state_dict()["position"][spec.short :]])
    encoder.load_state_dict(learned)
    get, size = full.__getitem__, size // 4
    return _teach("text tower", spec, encoder, get, targets, batch_size=size, part=1 - part, peak=peak)


def _teach(
    name: str,
    spec: TaughtWeightsSpec,
    tower: nn.Module,
    inputs: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    batch_size: int,
    part: float,
    peak: float,
) -> tuple[Tensor, Tensor]:
    """Teach a tower for a part of its minutes; return its and its teacher's embeddings of unseen inputs.

    The learning rate follows the clock. Image towers train in float32 and text towers in bfloat16, the faster precision
    for each.
    """
    if len(targets) < 2 * _HELD_OUT:
        raise ValueError(f"the {name} has {len(targets)} training inputs, expected at least {2 * _HELD_OUT}")
    schedule = CosineSchedule(peak=peak, final=0.0, warmup_steps=50, total_steps=1000)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=peak, weight_decay=0.05)
    generator = torch.Generator().manual_seed(spec.seed)
    began, done = time.process_time(), 0.0
    quick, in_bfloat16 = fuse_for_cpu(tower.train()), isinstance(tower.spec, TextEncoderSpec)
    with Progress(f"teaching the {name}", total=None, unit="steps", console=console(shown=True)) as bar:
        while done < 1:
            rows = _HELD_OUT + torch.randint(len(targets) - _HELD_OUT, (batch_size,), generator=generator)
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate(int(done * 1000))
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
                given = quick(inputs(rows)).float()
            loss = 1 - functional.cosine_similarity(given, targets[rows]).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            optimizer.step()
            done = (time.process_time() - began) / 60 / (spec.minutes * part)
            bar.advance(detail=f"{done:.0%}, cosine {1 - loss.item():.3f}")
    _fit_projection(tower, inputs, targets)
    with torch.no_grad():
        found = torch.cat([tower(inputs(rows)) for rows in torch.split(torch.arange(_HELD_OUT), 8)])
    cosine = float(functional.cosine_similarity(found, targets[:_HELD_OUT]).mean())
    say(f"the {name}: cosine {cosine:.3f} with its teacher's on {_HELD_OUT} that it did not see")
    return found, targets[:_HELD_OUT]


@torch.no_grad()
def _fit_tokens(tower: nn.Module, tokens: Tensor, targets: Tensor) -> None:
    """Fit the token embeddings so that their sums are closest to the targets of the texts."""
    used, places = torch.unique(tokens, return_inverse=True)
    gram, product = torch.eye(len(used)), torch.zeros(len(used), targets.shape[1])
    for rows in torch.split(torch.arange(_HELD_OUT, len(tokens)), 1024):
        counts = torch.zeros(len(rows), len(used)).scatter_add_(1, places[rows], torch.ones(places[rows].shape))
        gram, product = gram + counts.T @ counts, product + counts.T @ targets[rows]
    found = torch.linalg.solve(gram, product)
    tower.get_parameter("token_embedding.weight")[used] = _TOKENS * found / found.std()


@torch.no_grad()
def _fit_projection(tower: nn.Module, inputs: Callable[[Tensor], Tensor], targets: Tensor) -> None:
    """Fit the last linear layer to the targets; the tower is in evaluation mode afterwards."""
    *_, last = (module for module in tower.eval().modules() if isinstance(module, nn.Linear))
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, -2)))
    rows = torch.arange(_HELD_OUT, min(len(targets), _HELD_OUT + _FITTED))
    for some in torch.split(rows, 32):
        tower(inputs(some))
    handle.remove()
    features = torch.cat(seen)
    gram = features.T @ features
    gram += _RIDGE * gram.trace() / len(gram) * torch.eye(len(gram))
    wanted = targets[rows] if last.bias is None else targets[rows] - last.bias
    last.weight.copy_(torch.linalg.solve(gram, features.T @ wanted).T)


def _centred(embeddings: Tensor) -> Tensor:
    return functional.normalize(embeddings - embeddings.mean(0), dim=1)


def _lead(images: Tensor, texts: Tensor) -> float:
    """Return the median margin in cosine between the first and the second text of an image."""
    first, second = (functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T).topk(2).values.T
    return float((first - second).median())


def _floats(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    from mobileclip.terminal import parse

    taught_weights(parse(TaughtWeightsSpec, description=__doc__ or ""))

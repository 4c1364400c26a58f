"""Weights that tell pictures apart, for what measures rankings: a published model's, taught by a small one for minutes.

Command:   python -m examples.models.taught_weights --images DRAWINGS --texts TEXTS --output weights/s0.safetensors
Hardware:  any CPU
Time:      `--minutes`, shared by the towers; most of the image tower's with small pictures, the rest with its own size
Result:    a checkpoint in training form, as `python -m benchmarks runtimes --weights weights` takes it

Published weights are not shipped with the package, and rankings by random ones say nothing of int8. The towers here
learn the embeddings of `icons`, mapped into their own space by a rotation; the cosine with them is told at the end.
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
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.encoders import DualEncoder, save_model
from mobileclip.inference.tuning_inputs import read_captions, read_pictures
from mobileclip.progress import Progress
from mobileclip.storage import require_output
from mobileclip.terminal import console, say
from mobileclip.training import CosineSchedule

_HELD_OUT = 64
_SMALL_PART = 0.6


@attrs.frozen(kw_only=True)
class TaughtWeightsSpec:
    """What is taught, by what, and how long.

    Args:
        images: pictures to learn from, as `mobileclip quantize` takes them.
        texts: texts, likewise.
        output: the file to write.
        model: name of what is taught.
        teacher: a name or a file.
        minutes: of processor time, for each tower.
        num_images: that are read.
        num_texts: that are read.
        small: side of the pictures at first, in pixels; the rest of the time it sees the model's own size.
        batch_size: pictures of a step in small, four times those in the model's size; texts of a step.
        peak: learning rate.
        towers: what is taught of it; the other tower stays as its weights were drawn.
        seed: of weights and batches.
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
    batch_size: int = attrs.field(default=32, validator=validators.ge(8))
    peak: float = attrs.field(default=1e-3, validator=validators.gt(0))
    towers: tuple[Literal["image", "text"], ...] = ("image", "text")
    seed: int = 0


def taught_weights(spec: TaughtWeightsSpec) -> None:
    """Teach the towers, and write them as one model."""
    require_output(spec.output, overwrite=False, suffixes=(".safetensors",))
    torch.manual_seed(spec.seed)
    model = cast("DualEncoder", mobileclip.build_model(spec.model))
    teacher = mobileclip.load(spec.teacher)
    own, wide = model.spec.image.embedding_dim, teacher.model.spec.image.embedding_dim
    rotation = torch.linalg.qr(torch.randn(own, own))[0][:wide]
    if "image" in spec.towers:
        _teach_images(spec, model, teacher, rotation)
    if "text" in spec.towers:
        _teach_texts(spec, model, teacher, rotation)
    save_model(model, spec.output)


def _teach_images(
    spec: TaughtWeightsSpec, model: DualEncoder, teacher: mobileclip.ImageTextModel, rotation: Tensor
) -> None:
    transform = ImageTransform(model.spec.image.input)
    full = model.spec.image.input.size
    small = ImageTransform(attrs.evolve(model.spec.image.input, size=spec.small))
    side = teacher.model.spec.image.input.size
    pixels = read_pictures(spec.images, small, spec.num_images, seed=spec.seed, skipped=[])
    with torch.no_grad():
        seen = functional.interpolate(_floats(pixels), side, mode="area")
        targets = torch.cat([teacher.model.encode_image(one) for one in torch.split(seen, 256)]) @ rotation

    def inputs(rows: Tensor, part: float) -> Tensor:
        found = pixels[rows] if part < _SMALL_PART else pixels[rows[: len(rows) // 4]]
        images = transform.normalize(found).contiguous()
        size = spec.small if part < _SMALL_PART else full
        return images if size == spec.small else functional.interpolate(images, size, mode="bilinear")

    _teach("image", spec, model.image_encoder, inputs, targets)


def _teach_texts(
    spec: TaughtWeightsSpec, model: DualEncoder, teacher: mobileclip.ImageTextModel, rotation: Tensor
) -> None:
    texts = read_captions(spec.texts, spec.num_texts, seed=spec.seed, skipped=[])
    tokens = Tokenizer(model.spec.text.input)(texts)
    given = Tokenizer(teacher.model.spec.text.input)(texts)
    with torch.no_grad():
        targets = torch.cat([teacher.model.encode_text(one) for one in torch.split(given, 256)]) @ rotation
    _teach("text", spec, model.text_encoder, lambda rows, _: tokens[rows], targets)


def _teach(
    name: str, spec: TaughtWeightsSpec, tower: nn.Module, inputs: Callable[[Tensor, float], Tensor], targets: Tensor
) -> None:
    """Teach a tower for its minutes; the learning rate follows the clock."""
    if len(targets) < 2 * _HELD_OUT:
        raise ValueError(f"the {name} tower has {len(targets)} inputs to learn from, expected at least {2 * _HELD_OUT}")
    schedule = CosineSchedule(peak=spec.peak, final=0.0, warmup_steps=50, total_steps=1000)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=spec.peak, weight_decay=0.05)
    generator = torch.Generator().manual_seed(spec.seed)
    began, part = time.process_time(), 0.0
    tower.train()
    with Progress(f"teaching the {name} tower", total=None, unit="steps", console=console(shown=True)) as bar:
        while part < 1:
            rows = _HELD_OUT + torch.randint(len(targets) - _HELD_OUT, (spec.batch_size,), generator=generator)
            images = inputs(rows, part)
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate(int(part * 1000))
            with torch.autocast("cpu", torch.bfloat16):
                given = tower(images).float()
            loss = 1 - functional.cosine_similarity(given, targets[rows[: len(images)]]).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            optimizer.step()
            part = (time.process_time() - began) / 60 / spec.minutes
            bar.advance(detail=f"{part:.0%}, cosine {1 - loss.item():.3f}")
    tower.eval()
    with torch.no_grad():
        found = torch.cat(
            [tower(inputs(rows.repeat(4), 1.0)[: len(rows)]) for rows in torch.split(torch.arange(_HELD_OUT), 8)]
        )
    cosine = float(functional.cosine_similarity(found, targets[:_HELD_OUT]).mean())
    say(f"the {name} tower: cosine {cosine:.3f} with its teacher's on {_HELD_OUT} that it did not see")


def _floats(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    from mobileclip.terminal.help import parse

    taught_weights(parse(TaughtWeightsSpec, description=__doc__ or ""))

"""Scenes of coloured shapes with captions, and small teachers that learned them: data that a recipe makes on the spot.

Embeddings of a model that learned something are correlated as real ones are: captions and pictures of one scene lie
close, scenes that share a shape or a colour closer than others. Random numbers would show none of this.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import attrs
import numpy as np
import open_clip  # type: ignore[import-untyped]
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from mobileclip.data import AugmentationSpec, ImageTextSample, Tokenizer, normalize_pixels
from mobileclip.data.randomness import derived_seed
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.losses import ContrastiveLossSpec
from mobileclip.reinforce import ModelTeacher

COLOURS = {
    "red": "#d22", "green": "#2a3", "blue": "#24d", "yellow": "#fd2",
    "orange": "#f81", "purple": "#82b", "black": "#222", "white": "#eee",
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "bar", "cross", "ring")
SIZES = {"small": 0.14, "large": 0.24}
GROUNDS = {"grey": "#999", "pink": "#fbc", "brown": "#754", "pale blue": "#bdf"}

_TEXT = TextInput(context_length=32)
_FIRST_LOGIT_SCALE = 10.0


@attrs.frozen
class Scene:
    """Two shapes side by side: a size, a colour and a shape each."""

    left: tuple[str, str, str]
    right: tuple[str, str, str]
    ground: str

    def captions(self) -> tuple[str, ...]:
        """Return a real caption and five that a captioner could have written."""
        left, right = (" ".join(thing) for thing in (self.left, self.right))
        return (
            f"a {left} and a {right} on a {self.ground} ground",
            f"a {right} to the right of a {left}",
            f"there is a {left} beside a {' '.join(self.right[1:])}",
            f"two shapes on {self.ground}: a {' '.join(self.left[1:])} and a {' '.join(self.right[1:])}",
            f"a drawing of a {self.left[2]} and a {self.right[2]}",
            f"a {self.left[1]} {self.left[2]} next to something {self.right[1]}",
        )

    def draw(self, rng: np.random.Generator, width: int = 240, height: int = 180) -> Image.Image:
        """Return the picture; places, sizes and noise differ from one to the next."""
        image = Image.new("RGB", (width, height), GROUNDS[self.ground])
        pen = ImageDraw.Draw(image)
        for side, (size, colour, shape) in enumerate((self.left, self.right)):
            x, y = width * (0.27 + 0.46 * side + rng.uniform(-0.04, 0.04)), height * rng.uniform(0.38, 0.62)
            _draw_shape(pen, shape, (x, y, width * SIZES[size] * rng.uniform(0.8, 1.1)), COLOURS[colour])
        noise = rng.normal(0, 6, (height, width, 3))
        return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, place: tuple[float, float, float], colour: str) -> None:
    x, y, r = place
    match shape:
        case "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), colour)
        case "square":
            pen.rectangle((x - r, y - r, x + r, y + r), colour)
        case "triangle":
            pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], colour)
        case "bar":
            pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), colour)
        case "cross":
            pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), colour)
            pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), colour)
        case _:
            pen.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(1, round(r / 3)))


def scenes(seed: int) -> Iterator[Scene]:
    """Yield scenes without end."""
    rng = np.random.default_rng(seed)
    things = list(itertools.product(SIZES, COLOURS, SHAPES))
    grounds = list(GROUNDS)
    while True:
        left, right = (things[index] for index in rng.integers(len(things), size=2))
        yield Scene(left, right, grounds[rng.integers(len(grounds))])


def scene_samples(count: int, seed: int) -> list[ImageTextSample]:
    """Return samples with one real caption and one set of five synthetic ones, as JPEG."""
    rng = np.random.default_rng(seed)
    samples = []
    for index, scene in enumerate(itertools.islice(scenes(seed), count)):
        stream = io.BytesIO()
        scene.draw(rng).save(stream, "JPEG", quality=90)
        real, *synthetic = scene.captions()
        samples.append(
            ImageTextSample(
                key=f"{index:08d}",
                captions=(real,),
                syn_captions={"syn_text": synthetic},
                image=stream.getvalue(),
                url=f"https://example.com/scenes/{index:08d}.jpg",
                metadata={"uid": f"{index:032x}"},
            )
        )
    return samples


@attrs.frozen(kw_only=True)
class SceneTeacherSpec:
    """A small open_clip model and how it learns the scenes.

    Args:
        dim: of its embeddings.
        patch_size: of its image tower, in pixels.
        image_size: of its images, in pixels.
        logit_scale: what it multiplies cosine similarities with; reached at the end, for nothing is learned under it
            from the start.
        steps: batches that it learns from.
        batch_size: pictures per batch.
        seed: of the weights and the batches.
    """

    dim: int = 768
    patch_size: int = 16
    image_size: int = 64
    logit_scale: float = 100.0
    steps: int = 400
    batch_size: int = 64
    seed: int = 0

    def build(self) -> ModelTeacher:
        """Return the teacher, having trained it."""
        torch.manual_seed(self.seed)
        model: nn.Module = open_clip.CLIP(
            embed_dim=self.dim,
            vision_cfg={
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "layers": 2,
                "width": 64,
                "head_width": 32,
            },
            text_cfg={"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
        )
        tokenizer = Tokenizer(_TEXT)
        _train(self, model, tokenizer)
        return ModelTeacher(
            name=f"scenes-{self.patch_size}-{self.seed}",
            model=model,  # type: ignore[arg-type]  # open_clip has no types
            tokenizer=tokenizer,
            image=_image_input(self),
            dim=self.dim,
            logit_scale=self.logit_scale,
        )


def _image_input(spec: SceneTeacherSpec) -> ImageInput:
    return ImageInput(size=spec.image_size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def _train(spec: SceneTeacherSpec, model: nn.Module, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(spec.seed)
    # Colours stay what the captions say.
    augmentation = AugmentationSpec(size=spec.image_size, scale=(0.5, 1.0), num_operations=0)
    loss = ContrastiveLossSpec().build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=spec.steps)
    drawn = scenes(derived_seed(spec.seed, "scenes"))
    for step in range(spec.steps):
        batch = list(itertools.islice(drawn, spec.batch_size))
        images = torch.stack([_augmented(scene, augmentation, rng) for scene in batch])
        texts = [scene.captions()[rng.integers(6)] for scene in batch]
        ramp = (step + 1) / spec.steps
        terms = loss(
            image=model.encode_image(normalize_pixels(images, _image_input(spec)), normalize=True),  # type: ignore[operator]
            text=model.encode_text(tokenizer(texts), normalize=True),  # type: ignore[operator]
            logit_scale=_FIRST_LOGIT_SCALE * (spec.logit_scale / _FIRST_LOGIT_SCALE) ** ramp,
        )
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        schedule.step()


def _augmented(scene: Scene, augmentation: AugmentationSpec, rng: np.random.Generator) -> Tensor:
    image = scene.draw(rng, 120, 90)
    pixels = np.asarray(augmentation.apply(image, augmentation.sample(rng, image.size)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)

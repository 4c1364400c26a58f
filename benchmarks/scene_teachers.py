"""Small teachers that learned drawn scenes, for what is measured of stored embeddings.

Embeddings of a model that learned something are correlated as real ones are: captions and pictures of one scene lie
close, scenes that share a shape or a colour closer than others. Random numbers would show none of this.
"""

from __future__ import annotations

import itertools
import json

import attrs
import numpy as np
import torch
from torch import Tensor

from mobileclip.data import AugmentationSpec, Tokenizer, normalize_pixels
from mobileclip.data.randomness import derived_seed
from mobileclip.encoders import DualEncoder, DualEncoderSpec, OpenClipImageSpec, OpenClipTextSpec
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.losses import ContrastiveLossSpec
from mobileclip.recipes.tiny.scenes import Scene, scenes
from mobileclip.reinforce import ModelTeacher

_TEXT = TextInput(context_length=32)
_FIRST_LOGIT_SCALE = 10.0


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
        vision = {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "layers": 2,
            "width": 64,
            "head_width": 32,
        }
        text = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
        model = DualEncoderSpec(
            image=OpenClipImageSpec(embedding_dim=self.dim, input=_image_input(self), config=json.dumps(vision)),
            text=OpenClipTextSpec(embedding_dim=self.dim, input=_TEXT, config=json.dumps(text)),
        ).build()
        tokenizer = Tokenizer(_TEXT)
        _train(self, model, tokenizer)
        return ModelTeacher(
            name=f"scenes-{self.patch_size}-{self.seed}",
            clip=ImageTextModel(model.eval()),
            logit_scale=self.logit_scale,
        )


def _image_input(spec: SceneTeacherSpec) -> ImageInput:
    return ImageInput(size=spec.image_size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def _train(spec: SceneTeacherSpec, model: DualEncoder, tokenizer: Tokenizer) -> None:
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
            image=model.encode_image(normalize_pixels(images, _image_input(spec)), normalize=True),
            text=model.encode_text(tokenizer(texts), normalize=True),
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

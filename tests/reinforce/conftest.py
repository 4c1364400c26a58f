from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mobileclip.data import ImageTextSample, write_shard
from mobileclip.encoders import DualEncoder, DualEncoderSpec, ImageEncoderSpec, TextEncoderSpec, save_model
from mobileclip.engines import Retries
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.reinforce import CheckpointTeacher, ModelTeacher, TeacherEnsemble
from tests.encoders.small import SMALL, SMALL_VIT
from tests.stores import one_store, site, store  # noqa: F401  fixtures

# Units that fail are tried again at once.
AT_ONCE = Retries(pause_seconds=0)


class TinyImageSpec(ImageEncoderSpec):
    """Of two convolutions."""

    def build(self) -> nn.Module:
        layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        tower = nn.Sequential(*layers, nn.Linear(16, self.embedding_dim))
        tower.spec = self
        return tower


class TinyTextSpec(TextEncoderSpec):
    """Of a bag of bytes."""

    def build(self) -> nn.Module:
        tower = nn.EmbeddingBag(self.input.vocab_size, self.embedding_dim)
        tower.spec, tower.tokenizer = self, byte_tokens
        return tower


def tiny_model(*, dim: int, image: ImageInput, tower: nn.Module | None = None) -> ImageTextModel:
    images = TinyImageSpec(embedding_dim=dim, input=image).build()
    texts = TinyTextSpec(embedding_dim=dim, input=TextInput(context_length=24, vocab_size=256)).build()
    return ImageTextModel(DualEncoder(tower or images, texts).requires_grad_(False).eval())


def byte_tokens(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([list(text.encode()[:24].ljust(24)) for text in texts])


def tiny_teacher(name: str, *, dim: int, size: int, seed: int) -> ModelTeacher:
    torch.manual_seed(seed)
    image = ImageInput(size=size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.75))
    return ModelTeacher(name=name, clip=tiny_model(dim=dim, image=image), logit_scale=10.0 * dim)


def lying_teacher() -> ModelTeacher:
    """One whose embeddings have six dimensions, where it says five."""
    liar = tiny_teacher("liar", dim=5, size=32, seed=1)
    for tower in (liar.clip.model.image_encoder, liar.clip.model.text_encoder):
        tower.register_forward_hook(lambda *found: torch.ones(len(found[-1]), 6))
    return liar


@pytest.fixture
def teachers() -> TeacherEnsemble:
    """Two teachers of different dims that see images at different sizes."""
    return TeacherEnsemble(
        [tiny_teacher("first", dim=6, size=32, seed=1), tiny_teacher("second", dim=4, size=24, seed=2)]
    )


def picture(seed: int, *, width: int = 40, height: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def plain_sample(key: str, seed: int) -> ImageTextSample:
    return ImageTextSample(
        key=key,
        captions=(f"picture {seed}", f"number {seed}", "a picture"),
        syn_captions={"syn_text": ("a noisy square", f"noise of seed {seed}")},
        image=picture(seed, width=40 + seed),
        image_extension="png",
        metadata={"seed": seed},
        others={"cls": b"3"},
    )


def attentive(spec: DualEncoderSpec, seed: int) -> DualEncoder:
    """A small model with random weights whose embeddings depend on the image: norms know what images are like."""
    model = spec.build()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("gamma"):
                tensor.fill_(1.0)
            elif tensor.ndim > 1:
                tensor.normal_(0.0, tensor[0].numel() ** -0.5, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
        pixels = [np.asarray(Image.open(io.BytesIO(picture(index))).resize((64, 64))) for index in range(32)]
        model.train().encode_image(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255)
    return model.eval()


def small_teacher_files(folder: Path) -> tuple[CheckpointTeacher, ...]:
    """Write two teachers of this library, for workers in other processes; of few layers, since each is loaded often."""
    image = attrs.evolve(SMALL.image, stages=SMALL.image.stages[:1])
    specs = {"mci": attrs.evolve(SMALL, image=image), "vit": SMALL_VIT}
    for seed, (name, spec) in enumerate(specs.items()):
        save_model(attentive(spec, seed), folder / f"{name}.safetensors")
    return tuple(
        CheckpointTeacher(checkpoint=folder / f"{name}.safetensors", logit_scale=10.0 + seed)
        for seed, name in enumerate(specs)
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Teachers and a captioner of open_clip's, as files that nobody changes."""
    from tests.reinforce.open_clip_models import write_tiny_models

    return write_tiny_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def small_teachers(tmp_path_factory) -> tuple[CheckpointTeacher, ...]:
    return small_teacher_files(tmp_path_factory.mktemp("teachers"))


def plain_shards(
    directory: Path, num_shards: int, num_samples: int, *, broken: tuple[int, int] | None = None
) -> list[Path]:
    """Write shards to reinforce; one sample, of a shard and a place in it, may have an image that is none."""
    directory.mkdir(exist_ok=True)
    shards = []
    for shard in range(num_shards):
        samples = [plain_sample(f"s{shard}-{index}", 10 * shard + index) for index in range(num_samples)]
        if broken is not None and broken[0] == shard:
            samples[broken[1]] = attrs.evolve(samples[broken[1]], image=b"no image")
        shards.append(write_shard(directory / f"{shard:08d}.tar", samples))
    return shards


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., list[Path]]:
    return lambda num_shards=3, num_samples=5: plain_shards(tmp_path / "plain", num_shards, num_samples)

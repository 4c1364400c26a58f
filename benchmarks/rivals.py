"""Models of open_clip and timm that mobileclip's are compared with: the same architectures, weights and inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.encoders import DualEncoder, DualEncoderSpec, save_model, specs
from mobileclip.inputs import ImageInput
from mobileclip.reparam import LayerScale

Tower = Literal["image", "text"]
Rival = Literal["timm", "open_clip"]
Size = Literal["s0", "s1", "s2", "b", "s3", "s4", "l14"]


@attrs.frozen
class Published:
    """A published model, and what the rivals call it.

    Args:
        spec: our spec of the form that open_clip can hold: its S0 is MobileCLIP2's, its B has timm's stem.
        open_clip: name of open_clip's model.
        timm: name of timm's image tower.
    """

    spec: Callable[[], DualEncoderSpec]
    open_clip: str
    timm: str


PUBLISHED: dict[Size, Published] = {
    "s0": Published(specs.mobileclip2_s0, "MobileCLIP2-S0", "fastvit_mci0"),
    "s1": Published(specs.mobileclip_s1, "MobileCLIP-S1", "fastvit_mci1"),
    "s2": Published(specs.mobileclip_s2, "MobileCLIP-S2", "fastvit_mci2"),
    "b": Published(specs.mobileclip2_b, "MobileCLIP2-B", "vit_base_mci_224"),
    "s3": Published(specs.mobileclip2_s3, "MobileCLIP2-S3", "fastvit_mci3"),
    "s4": Published(specs.mobileclip2_s4, "MobileCLIP2-S4", "fastvit_mci4"),
    "l14": Published(specs.mobileclip2_l14, "MobileCLIP2-L-14", "vit_large_patch14_clip_224"),
}


def randomize(model: nn.Module) -> None:
    """Give norms and layer scales values that matter; freshly built they are almost the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, LayerScale):
            nn.init.uniform_(module.gamma, 0.1, 0.3)


def open_clip_transform(contract: ImageInput) -> Callable[[Any], Tensor]:
    """Return open_clip's own preprocessing of pictures for a model of this contract."""
    import open_clip  # type: ignore[import-untyped]

    transform: Callable[[Any], Tensor] = open_clip.image_transform(
        contract.size,
        is_train=False,
        mean=contract.mean,
        std=contract.std,
        interpolation=contract.interpolation,
    )
    return transform


def open_clip_state(model: DualEncoder) -> dict[str, Tensor]:
    """Return a model's weights, in training form, as open_clip names them."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "open_clip_pytorch_model.bin"
        save_model(model, path, layout="open_clip")
        state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def rivals(
    published: Published, model: DualEncoder, against: tuple[Rival, ...]
) -> Iterator[tuple[Rival, Tower, nn.Module]]:
    """Yield the rivals' reparameterised towers with the weights of `model`, which is in training form."""
    import open_clip
    import timm
    from timm.utils.model import reparameterize_model

    state = open_clip_state(model)
    if "timm" in against:
        prefix = "visual.trunk."
        trunk = timm.create_model(published.timm, num_classes=model.spec.image.embedding_dim)
        trunk.load_state_dict({name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)})
        yield "timm", "image", reparameterize_model(trunk.eval())
    if "open_clip" in against:
        rival = open_clip.create_model(published.open_clip)
        rival.load_state_dict(state)
        rival = reparameterize_model(rival.eval())
        yield "open_clip", "image", cast("nn.Module", rival.visual)
        yield "open_clip", "text", cast("nn.Module", rival.text)


def example(spec: DualEncoderSpec, tower: Tower, *, batch_size: int, channels_last: bool) -> Tensor:
    """Return a batch of random images, or of texts of random length."""
    if tower == "image":
        images = torch.rand(batch_size, 3, spec.image.input.size, spec.image.input.size)
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images
    contract = spec.text.input
    start = contract.vocab_size - 2
    tokens = torch.full((batch_size, contract.context_length), contract.pad_id)
    for text in tokens:
        length = int(torch.randint(5, contract.context_length, ()))
        text[:length] = torch.randint(1, start, (length,))
        text[0], text[length - 1] = start, contract.end_id
    return tokens


def open_clip_model(published: Published, model: DualEncoder) -> nn.Module:
    """Return open_clip's model with the weights of `model`, both in training form."""
    import open_clip

    rival: nn.Module = open_clip.create_model(published.open_clip, output_dict=False)
    rival.load_state_dict(open_clip_state(model))
    return rival

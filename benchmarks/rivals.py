"""open_clip's models for comparison with mobileclip's: the same architectures, weights, inputs and exports."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import attrs
import torch
from torch import Tensor, nn

from mobileclip.data import ImageTransform, load_image
from mobileclip.encoders import DualEncoder, DualEncoderSpec, save_model, specs
from mobileclip.export import ExportSpec, targets
from mobileclip.export.export import tower_export, tower_file
from mobileclip.export.towers import TowerExport, cut_to_length, input_of
from mobileclip.hardware import Precision
from mobileclip.inference.comparison import bundled_samples
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.reparam import LayerScale

Tower = Literal["image", "text"]
Size = Literal["s0", "s1", "s2", "b", "s3", "s4", "l14"]


@attrs.frozen
class Published:
    """A published model, and its names in other libraries.

    Args:
        spec: our spec in the form that open_clip supports: open_clip's S0 is MobileCLIP2's, and its B has timm's stem.
        open_clip: name of open_clip's model.
    """

    spec: Callable[[], DualEncoderSpec]
    open_clip: str


PUBLISHED: dict[Size, Published] = {
    "s0": Published(specs.mobileclip2_s0, "MobileCLIP2-S0"),
    "s1": Published(specs.mobileclip_s1, "MobileCLIP-S1"),
    "s2": Published(specs.mobileclip_s2, "MobileCLIP-S2"),
    "b": Published(specs.mobileclip2_b, "MobileCLIP2-B"),
    "s3": Published(specs.mobileclip2_s3, "MobileCLIP2-S3"),
    "s4": Published(specs.mobileclip2_s4, "MobileCLIP2-S4"),
    "l14": Published(specs.mobileclip2_l14, "MobileCLIP2-L-14"),
}


def randomize(model: nn.Module) -> None:
    """Give norms and layer scales random values, since new norms and layer scales are almost the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, LayerScale):
            nn.init.uniform_(module.gamma, 0.1, 0.3)


def open_clip_transform(contract: ImageInput) -> Callable[[Any], Tensor]:
    """Return open_clip's own image preprocessing for a model with this contract."""
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
    """Return a model's weights in training form, with open_clip's names."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "open_clip_pytorch_model.bin"
        save_model(model, path, layout="open_clip")
        state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def released(published: Published, model: DualEncoder, tower: Tower) -> nn.Module:
    """Return open_clip's tower, reparameterised by timm, with the weights of `model` in training form."""
    import open_clip
    from timm.utils.model import reparameterize_model

    rival = open_clip.create_model(published.open_clip)
    rival.load_state_dict(open_clip_state(model))
    rival = reparameterize_model(rival.eval())
    return cast("nn.Module", rival.visual if tower == "image" else rival.text)


def example(spec: DualEncoderSpec, tower: Tower, *, batch_size: int, channels_last: bool) -> Tensor:
    """Return a batch of random images, or of random texts of random length."""
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


def random_weights(model: str, folder: Path, *, seed: int = 0) -> str:
    """Write random weights of a model and return the file, since a name alone would fetch published weights.

    Args:
        model: architecture name in open_clip.
        folder: folder of the file.
        seed: seed of the weights.
    """
    import open_clip
    from safetensors.torch import save_model

    path = folder / f"{model}-{seed}.safetensors"
    torch.manual_seed(seed)
    made = open_clip.create_model(model)
    if hasattr(made, "text_decoder"):  # whose projection open_clip leaves as the memory was, which may be not a number
        torch.nn.init.normal_(made.text_decoder.text_projection, std=0.02)
    save_model(made, str(path))
    return str(path)


@torch.no_grad()
def random_model(spec: DualEncoderSpec) -> DualEncoder:
    """Return a model with random weights from PyTorch's generator, in training form and evaluation mode.

    Its batch norms have the statistics of the package's images; with other statistics, all images have the same
    embedding.

    Args:
        spec: spec of the model.
    """
    model = spec.build()
    randomize(model)
    transform = ImageTransform(model.spec.image.input)
    images = torch.stack([transform(load_image(data)) for data in bundled_samples().images])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The mean over batches, of which there is one.
            module.momentum = None
            module.reset_running_stats()
    model.train()
    model.encode_image(images)
    return model.eval()


Runtime = Literal["onnxruntime", "openvino", "openvino_bf16"]
_CHOICES: dict[Runtime, tuple[str, Precision]] = {
    "onnxruntime": ("onnx", "float32"),
    "openvino": ("openvino", "float32"),
    "openvino_bf16": ("openvino", "bfloat16"),
}


@attrs.frozen(kw_only=True, eq=False)
class RivalExport(TowerExport):
    """The release's tower, wrapped so that this library can export it."""

    rival: nn.Module

    def graph(self, dtype: torch.dtype) -> nn.Module:
        """Return the module to export."""
        return _InItsType(copy.deepcopy(self.rival).to(dtype), dtype).requires_grad_(requires_grad=False)


class _InItsType(nn.Module):
    """A tower with float32 inputs and outputs that computes in any dtype."""

    def __init__(self, tower: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.tower = tower
        self.dtype = dtype

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings."""
        taken = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        embeddings: Tensor = self.tower(taken).float()
        return embeddings


def exported(
    mine: nn.Module, tower: Tower, runtime: Runtime, *, batch_size: int, rival: nn.Module | None, folder: Path
) -> Callable[[Tensor], Tensor]:
    """Return a function that computes unnormalised embeddings in a runtime.

    Args:
        mine: this library's folded tower.
        tower: name of the tower.
        runtime: name of the runtime.
        batch_size: number of images or texts per call; a value above one exports a file for batches of any size.
        rival: the release's tower, exported in place of `mine`; this tower only takes texts of the full context length.
        folder: folder of the exported file, which the function creates.
    """
    name, precision = _CHOICES[runtime]
    target = targets.resolve(name)
    target.check()
    spec = ExportSpec(
        output=folder, target=name, tower=tower, precision=precision, dynamic_batch=batch_size > 1, normalize=False
    )
    export = tower_export(tower, mine, spec, target, calibration=None)
    if rival is not None:
        no_inputs = torch.empty(0)
        export = RivalExport(tower=tower, encoder=mine, spec=spec, calibration=no_inputs, rival=rival)
    folder.mkdir(parents=True)
    path = folder / f"{tower}{target.suffix}"
    file = tower_file(export, path.name, target.export(export, path))
    run, contract = target.open(path, file), input_of(mine)
    if isinstance(contract, TextInput) and file.lengths:
        return lambda batch: run(cut_to_length(batch, file.lengths, contract))[0]
    return lambda batch: run(batch)[0]

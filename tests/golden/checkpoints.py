"""The golden checkpoints and outputs of the public code, and how far ours are from them."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.golden.fill import filled_state, image_batch

HERE = Path(__file__).parent


@dataclass(frozen=True)
class GoldenModel:
    """One checkpoint of the public code: its file name, the layout, and our name for the model."""

    file: str
    layout: str
    name: str

    @property
    def keys_file(self) -> Path:
        return HERE / "models" / f"{self.file}.keys.json"

    def state(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array) for name, array in filled_state(self.keys_file).items()}

    def write_shapes(self, path: Path) -> Path:
        """Write a file with its names and shapes, of zeros that take no place on the disk, and return its path."""
        kinds, header, end = {True: ("I64", 8), False: ("F32", 4)}, {}, 0
        for name, shape in json.loads(self.keys_file.read_text()).items():
            kind, size = kinds[name.endswith("num_batches_tracked")]
            start, end = end, end + size * math.prod(shape)
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        content = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(content)) + content)
            file.truncate(8 + len(content) + end)
        return path

    def outputs(self) -> dict[str, np.ndarray]:
        with np.load(HERE / "models" / f"{self.file}.npz") as file:
            return dict(file)


GOLDEN_MODELS = [
    GoldenModel("apple_mobileclip_s0", "official", "mobileclip_s0"),
    GoldenModel("apple_mobileclip_s1", "official", "mobileclip_s1"),
    GoldenModel("apple_mobileclip_s2", "official", "mobileclip_s2"),
    GoldenModel("apple_mobileclip_b", "official", "mobileclip_b"),
    GoldenModel("openclip_MobileCLIP-S1", "open_clip", "mobileclip_s1"),
    GoldenModel("openclip_MobileCLIP-S2", "open_clip", "mobileclip_s2"),
    GoldenModel("openclip_MobileCLIP-B", "open_clip", "mobileclip_b"),
    GoldenModel("openclip_MobileCLIP2-S0", "open_clip", "mobileclip2_s0"),
    GoldenModel("openclip_MobileCLIP2-S2", "open_clip", "mobileclip2_s2"),
    GoldenModel("openclip_MobileCLIP2-B", "open_clip", "mobileclip2_b"),
    GoldenModel("openclip_MobileCLIP2-S3", "open_clip", "mobileclip2_s3"),
    GoldenModel("openclip_MobileCLIP2-S4", "open_clip", "mobileclip2_s4"),
    GoldenModel("openclip_MobileCLIP2-L-14", "open_clip", "mobileclip2_l14"),
]


def golden(file: str) -> GoldenModel:
    return next(model for model in GOLDEN_MODELS if model.file == file)


def golden_texts() -> list[str]:
    return [entry["text"] for entry in _tokens()]


def golden_tokens() -> torch.Tensor:
    return torch.tensor([entry["tokens"] for entry in _tokens()])


def golden_images(size: int) -> torch.Tensor:
    return torch.from_numpy(image_batch(2, size, seed=0))


def relative_error(ours: torch.Tensor, theirs: np.ndarray | torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    theirs = torch.as_tensor(theirs).double()
    return float((ours.detach().double() - theirs).norm() / theirs.norm())


def _tokens() -> list[dict]:
    return json.loads((HERE / "tokenizer" / "tokens.json").read_text())

"""Small models of open_clip with random weights, as files: what a recipe's `--tiny` runs with, and tests.

They are open_clip's own architectures, so all that differs from the published teachers and captioner is what they say.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from mobileclip.data.randomness import derived_seed
from mobileclip.interop.open_clip_models import open_clip_package
from mobileclip.reinforce.captioners import CocaCaptioner
from mobileclip.reinforce.teachers import OpenClipTeacher

_VOCAB_SIZE = 49408
_LOGIT_SCALE = 50.0
# How far apart the logits of CoCa's next id are: as wide as a trained model's, so that few ids make up the nucleus.
_SPREAD = 8.0

_VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
_TEXT = {"context_length": 77, "vocab_size": _VOCAB_SIZE, "width": 32, "heads": 2, "layers": 2}
_COCA_TEXT = {**_TEXT, "context_length": 76}

CONFIGS: dict[str, dict[str, Any]] = {
    "tiny_vit": {"embed_dim": 48, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "tiny_resnet": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": _TEXT,
    },
    "tiny_coca": {
        "embed_dim": 32,
        "vision_cfg": {**_VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**_COCA_TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**_COCA_TEXT, "attn_pooler_heads": 2},
        "custom_text": True,
    },
}
"""Architectures as open_clip describes them."""


@attrs.frozen(kw_only=True)
class TinyModels:
    """Files of small random teachers and a captioner for `--tiny`.

    Args:
        teachers: two of different kinds, image sizes and dims.
        captioner: a CoCa whose captions are short.
    """

    teachers: tuple[OpenClipTeacher, ...]
    captioner: CocaCaptioner


def write_tiny_models(directory: Path, seed: int = 0) -> TinyModels:
    """Write `NAME.json` and `NAME.safetensors` of two teachers and a captioner, and return their specs.

    Args:
        directory: made if it is missing; files of the same names are replaced.
        seed: of the weights.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    for name, config in CONFIGS.items():
        (directory / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        save_file(_weights(config, seed=derived_seed(seed, name)), directory / f"{name}.safetensors")
    paths = {name: (str(directory / f"{name}.json"), str(directory / f"{name}.safetensors")) for name in CONFIGS}
    model, weights = paths["tiny_coca"]
    return TinyModels(
        teachers=tuple(
            OpenClipTeacher(model=paths[name][0], pretrained=paths[name][1]) for name in ("tiny_vit", "tiny_resnet")
        ),
        captioner=CocaCaptioner(model=model, pretrained=weights, max_length=12),
    )


def _weights(config: dict[str, Any], *, seed: int) -> dict[str, torch.Tensor]:
    open_clip = open_clip_package()
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = kind(**{key: value for key, value in config.items() if key != "custom_text"})
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        # Norms stay as they are made; the rest is drawn, for open_clip leaves some of CoCa's weights as memory was.
        if parameter.ndim > 1:
            spread = _SPREAD if name == "text_decoder.text_projection" else 1.0
            # open_clip keeps projections the other way round: features @ projection.
            fan_in = parameter.shape[0] if name.endswith("proj") or "projection" in name else parameter[0].numel()
            nn.init.normal_(parameter, std=spread / math.sqrt(fan_in), generator=generator)
        elif name == "logit_scale":
            nn.init.constant_(parameter, math.log(_LOGIT_SCALE))
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}

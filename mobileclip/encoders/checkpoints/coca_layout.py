"""The checkpoint layout of open_clip's CoCa and of Apple's MobileCLIP2 captioners."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mobileclip.encoders.checkpoints.layouts import TRANSPOSED, Layout, ModelSpec, Reshape, Rule, layouts
from mobileclip.encoders.coca import CoCaSpec
from mobileclip.encoders.text import TextTransformerSpec
from mobileclip.encoders.vit import ViTSpec
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD, ImageInput, TextInput

_HEAD_DIM, _POOLER_HEADS = 64, 8  # as in coca_ViT-B-32 and coca_ViT-L-14; shapes do not determine them
_VIT: dict[str, Any] = {"stem": "patch", "class_position": True, "norm_before": True}
_DEPTHS = {"text.transformer.resblocks.": 3, "visual.transformer.resblocks.": 3, "text_decoder.resblocks.": 2}
_RULES: Sequence[Rule] = (
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.ffn_norm\.", ".ln_2."),
    (r"^(decoder\..*)\.context_norm\.", r"\1.ln_1_kv."),
    (r"\.attention\.qkv\.", ".attn.in_proj_"),
    (r"\.attention\.project\.", ".attn.out_proj."),
    (r"\.attention\.(q|k|v)(?:uery|ey|alue)\.", r".attn.\1_proj_"),
    (r"\.ffn\.fc1\.", ".mlp.c_fc."),
    (r"\.ffn\.fc2\.", ".mlp.c_proj."),
    (r"^image_encoder\.stem\.conv\.", "visual.conv1."),
    (r"^image_encoder\.class_token$", "visual.class_embedding"),
    (r"^image_encoder\.position$", "visual.positional_embedding"),
    (r"^image_encoder\.norm_before\.", "visual.ln_pre."),
    (r"^image_encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^image_norm\.", "visual.ln_post."),
    (r"^image_project\.weight$", "visual.proj"),
    (r"^pooler\.queries$", "visual.attn_pool.query"),
    (r"^pooler\.query_norm\.", "visual.attn_pool.ln_q."),
    (r"^pooler\.context_norm\.", "visual.attn_pool.ln_k."),
    (r"^pooler\.", "visual.attn_pool."),
    (r"^text_encoder\.class_token$", "text.cls_emb"),
    (r"^text_encoder\.position$", "text.positional_embedding"),
    (r"^text_encoder\.norm\.", "text.ln_final."),
    (r"^text_encoder\.project\.weight$", "text.text_projection"),
    (r"^text_encoder\.layers\.", "text.transformer.resblocks."),
    (r"^text_encoder\.", "text."),
    (r"^decoder\.norm\.", "text_decoder.ln_final."),
    (r"^decoder\.project\.weight$", "text_decoder.text_projection"),
    (r"^decoder\.layers\.", "text_decoder.resblocks."),
    (r"^decoder\.cross_layers\.", "text_decoder.cross_attn."),
)
_SHAPES = (
    (r"^image_project\.weight$|^text_encoder\.project\.weight$|^decoder\.project\.weight$", TRANSPOSED),
    (r"^logit_scale$", Reshape(lambda tensor: tensor.reshape(()), lambda tensor: tensor.reshape(1))),
)
_QUERY = ".attn.q_proj_"
_JOINED = re.compile(r"(?:\.attn_pool|\.cross_attn\.\d+)\.attn\.in_proj_(?:weight|bias)$")


class CocaLayout(Layout):
    """The layout of open_clip's CoCa with open_clip's own ViT.

    `nn.MultiheadAttention` concatenates the weights of queries, keys and values, unless the context and the queries
    have different widths.

    Source: the public project mlfoundations/open_clip.
    """

    def has_place(self, spec: ModelSpec) -> bool:
        """Return whether open_clip can build the model: a captioner whose ViT has a patch stem and `norm_before`."""
        image = spec.image if isinstance(spec, CoCaSpec) else None
        return isinstance(image, ViTSpec) and all(getattr(image, name) == one for name, one in _VIT.items())

    def packed(self, tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """Return the tensors with queries, keys and values concatenated as in PyTorch's attention."""
        del spec
        packed = dict(tensors)
        for name in (name for name in tensors if _QUERY in name):
            names = [name.replace(_QUERY, f".attn.{part}_proj_") for part in "qkv"]
            parts = [tensors[one] for one in names]
            if len({part.shape for part in parts}) == 1:
                packed[name.replace(_QUERY, ".attn.in_proj_")] = torch.cat(parts)
                for one in names:
                    del packed[one]
        return packed

    def unpacked(self, tensors: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
        """Invert `packed`, and drop the attention masks that older versions of open_clip store."""
        del spec
        unpacked: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if _JOINED.search(name):
                parts = zip("qkv", tensor.chunk(3), strict=False)
                unpacked |= {name.replace("in_proj_", f"{part}_proj_"): one.clone() for part, one in parts}
            elif not name.endswith("attn_mask"):
                unpacked[name] = tensor
        return unpacked

    def spec_of(self, tensors: Mapping[str, Tensor]) -> CoCaSpec | None:
        """Infer the captioner's spec from tensor shapes, assuming 64 channels per head and 8 pooling heads.

        Raises:
            ValueError: if the image tower is not a supported ViT.
        """
        if "text_decoder.text_projection" not in tensors:
            return None
        try:
            vocab_size, width = tensors["text.token_embedding.weight"].shape
            image_width, channels, patch_size, _ = tensors["visual.conv1.weight"].shape
            side = math.isqrt(len(tensors["visual.positional_embedding"]) - 1)
            text, image, decoder = (
                len({name.split(".")[place] for name in tensors if name.startswith(start)})
                for start, place in _DEPTHS.items()
            )
            return CoCaSpec(
                image=ViTSpec(
                    input=ImageInput(
                        size=side * patch_size, interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD
                    ).of_channels(channels),
                    width=image_width,
                    depth=image,
                    num_heads=max(1, image_width // _HEAD_DIM),
                    embedding_dim=width,
                    patch_size=patch_size,
                    initialization="open_clip",
                    **_VIT,
                ),
                text=TextTransformerSpec(
                    input=TextInput(
                        context_length=len(tensors["text.positional_embedding"]) - 1, vocab_size=vocab_size
                    ),
                    width=width,
                    depth=text,
                    num_heads=max(1, width // _HEAD_DIM),
                    embedding_dim=width,
                    causal=True,
                ),
                decoder_depth=decoder,
                decoder_heads=max(1, width // _HEAD_DIM),
                num_queries=len(tensors["visual.attn_pool.query"]),
                pooler_heads=_POOLER_HEADS,
            )
        except (KeyError, ValueError) as error:
            raise ValueError(f"is an open_clip CoCa whose image tower is not a supported ViT ({error})") from error


layouts.add(
    "open_clip_coca",
    CocaLayout("open_clip_coca", image_prefix="visual.", text_prefix="text_decoder.", rules=_RULES, shapes=_SHAPES),
)

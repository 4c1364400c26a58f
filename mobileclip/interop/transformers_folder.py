"""Configuration files for loading a model folder in transformers and sentence-transformers."""

from __future__ import annotations

import json
from typing import Any

from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.encoders import DualEncoderSpec, MCtSpec, TextEncoderSpec, TextTransformerSpec
from mobileclip.encoders.checkpoints.layouts import has_projection, layouts, towers
from mobileclip.encoders.checkpoints.saving import Header
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.interop.timm import timm_model

_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # as Pillow numbers them
_OUTPUT = "pooler_output"
TRANSFORMERS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""Names of the files that transformers and sentence-transformers read from a folder."""


def transformers_files(spec: DualEncoderSpec) -> dict[str, str]:
    """Return the configuration and tokenizer files for transformers and sentence-transformers, by file name.

    Args:
        spec: spec of the model, in training form.

    Raises:
        ValueError: if transformers does not support the model's towers, projection or tokenizer.

    Examples:
        >>> files = transformers_files(mobileclip.specs.mobileclip_s0())
        >>> json.loads(files["config.json"])["vision_config"]["architecture"]
        'fastvit_mci0'
    """
    for _, tower in towers(spec):
        layouts["transformers"].check(tower)
    image, text = timm_model(spec.image), spec.text
    if not has_projection(spec.image):
        raise ValueError("transformers needs an image tower with a projection, but this tower has no projection")
    header = Header(spec=spec, form="training", layout="transformers")
    vision = {
        "model_type": "timm_wrapper",
        "architecture": image.architecture,
        "model_args": dict(image.arguments),
        "num_classes": 0,
        "hidden_size": spec.image.without_projection().embedding_dim,
        "label_names": [],
    }
    config = {
        "architectures": ["VisionTextDualEncoderModel"],
        "model_type": "vision-text-dual-encoder",
        "projection_dim": spec.image.embedding_dim,
        "vision_config": vision,
        "text_config": _text_config(text),
        "dtype": "float32",
        "mobileclip": header.to_metadata(),
    }
    tokenizer = Tokenizer(text.input).to_json()
    texts = {"padding": "max_length", "max_length": text.input.context_length, "truncation": True}
    modalities = {kind: {"method": f"get_{kind}_features", "method_output_name": _OUTPUT} for kind in ("text", "image")}
    processor = {"processor_class": "VisionTextDualEncoderProcessor"}
    files: dict[str, Any] = {
        "config.json": config,
        "preprocessor_config.json": {
            **preprocessor_config(spec.image.input, resample=_RESAMPLING[spec.image.input.interpolation]),
            **processor,
        },
        "processor_config.json": processor,
        "tokenizer_config.json": {
            **tokenizer_config(tokenizer, text.input),
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids"],  # without a mask: the tower attends to the padding
        },
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": modalities,
            "module_output_name": "sentence_embedding",
            "processing_kwargs": {"text": texts},
        },
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }
    written = {name: f"{json.dumps(content, indent=2)}\n" for name, content in files.items()}
    return {**written, "tokenizer.json": tokenizer}


def _text_config(spec: TextEncoderSpec) -> dict[str, Any]:
    if not isinstance(spec, TextTransformerSpec | MCtSpec):
        raise ValueError(f"transformers has no text tower like {type(spec).__name__}")
    if spec.input != TextInput(context_length=spec.input.context_length) or spec.pool != "end":
        raise ValueError(
            "transformers' text towers pool a text at its largest id, CLIP's end token, but this tower has different "
            "ids or averages the tokens"
        )
    shared = {
        "hidden_size": spec.width,
        "intermediate_size": 4 * spec.width,
        "projection_dim": spec.width,  # of the text model itself; the image-text model projects to the embedding
        "num_hidden_layers": spec.num_blocks,
        "num_attention_heads": spec.num_heads,
        "hidden_act": "gelu",
        "vocab_size": spec.input.vocab_size,
        "max_position_embeddings": spec.input.context_length,
    }
    if spec.causal:
        ids = {
            "bos_token_id": spec.input.start_id,
            "eos_token_id": spec.input.end_id,
            "pad_token_id": spec.input.pad_id,
        }
        return {"model_type": "clip_text_model", **shared, **ids}
    mixers = {"use_repmixer_blocks": isinstance(spec, MCtSpec)}
    kernel = {"repmixer_kernel_size": spec.kernel_size} if isinstance(spec, MCtSpec) else {}
    return {"model_type": "sam3_lite_text_text_model", **shared, **mixers, **kernel}


def preprocessor_config(image: ImageInput, *, resample: int) -> dict[str, Any]:
    """Return the content of a `preprocessor_config.json`.

    Args:
        image: the model's image input.
        resample: Pillow's number of the resize filter: 2 for bilinear, 3 for bicubic.
    """
    square = {"height": image.size, "width": image.size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if image.fit == "stretch" else {"shortest_edge": image.size},
        "resample": resample,
        "do_center_crop": image.fit == "crop",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }


def tokenizer_config(tokenizer: str, text: TextInput) -> dict[str, Any]:
    """Return the content of a `tokenizer_config.json`.

    Args:
        tokenizer: content of the `tokenizer.json` in the same folder.
        text: the model's text input.
    """
    whole = json.loads(tokenizer)
    names = {entry["id"]: entry["content"] for entry in whole["added_tokens"]}
    return {
        "tokenizer_class": "CLIPTokenizer" if text.tokenizer is None else "PreTrainedTokenizerFast",
        "model_max_length": text.context_length,
        "pad_token": whole["padding"]["pad_token"],
        "bos_token": names.get(text.start_id),
        "eos_token": names.get(text.end_id),
        "unk_token": names.get(text.end_id),
    }

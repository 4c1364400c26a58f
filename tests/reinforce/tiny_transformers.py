"""Small models of transformers with random weights, written as `save_pretrained` writes the published ones."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch

from mobileclip.data import Tokenizer

LETTERS = tuple(string.punctuation + string.digits + string.ascii_letters + "äéあ")


def gemma_tokenizer(**options):
    """Return a tokenizer of Gemma's kind: byte pairs, some of which are words."""
    from transformers import GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    merges = [("c", "a"), ("ca", "t"), ("d", "o"), ("do", "g"), ("▁", "cat"), ("▁", "dog")]
    pieces += ["".join(pair) for pair in merges]
    return GemmaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges, **options)


def xlm_tokenizer():
    """Return a tokenizer of XLM-V's kind."""
    from transformers import XLMRobertaTokenizer

    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [*special, ("▁", -2.0), *((letter, -5.0) for letter in LETTERS), ("▁cat", -1.0), ("▁dog", -1.0)]
    return XLMRobertaTokenizer(vocab=pieces)


TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 32, "patch_size": 8}
PROJECTED = {"projection_dim": 24}
CROPPED = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def _saved(folder: Path, *parts) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def drawn(model, seed):
    """Return a model whose embeddings tell inputs apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("embedding"):
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
            elif parameter.ndim == 1 and parameter.shape == (1,):
                parameter.fill_(3.0)
    return model.eval()


def write_siglip(folder: Path, *, seed: int = 0) -> Path:
    """Write a SigLIP 2 of one size: transformers calls it siglip, with Gemma's tokenizer."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    tokenizer = gemma_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    processor = SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2)
    return _saved(folder, drawn(model, seed), tokenizer, processor)


def write_metaclip(folder: Path, *, seed: int = 0) -> Path:
    """Write a MetaCLIP 2: a causal text tower that pools at the end token of XLM-V's tokenizer."""
    from transformers import CLIPImageProcessor, MetaClip2Config, MetaClip2Model

    tokenizer = xlm_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": 2} | PROJECTED
    config = MetaClip2Config(text_config=text, vision_config=VISION | PROJECTED, **PROJECTED)
    return _saved(folder, drawn(MetaClip2Model(config), seed), tokenizer, CLIPImageProcessor(**CROPPED))


CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
LANGUAGE = {**TEXT, "num_key_value_heads": 2, "max_position_embeddings": 512}
# How far apart the logits of the next id are: as wide as a trained model's, so that few ids make up the nucleus.
_SPREAD = 6.0


def chat_tokenizer(*added: str):
    """Return a tokenizer with the special tokens of a chat, and its ids as configurations have them."""
    tokenizer = gemma_tokenizer(padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    return tokenizer, {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def _write(folder: Path, model, processor, seed: int) -> Path:
    drawn(model, seed)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(_SPREAD)
    return _saved(folder, model, processor)


def write_llava(folder: Path, *, seed: int = 0, template: bool = True) -> Path:
    """Write a LLaVA: every image has the same number of ids."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer, ids = chat_tokenizer("<image>")
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION, "projection_dim": 32},
        text_config={"model_type": "llama", **LANGUAGE, **ids, "vocab_size": len(tokenizer) + 3},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(**CROPPED),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>") if template else None,
    )
    return _write(folder, LlavaForConditionalGeneration(config), processor, seed)


def write_qwen(folder: Path, *, seed: int = 0) -> Path:
    """Write a Qwen2.5-VL: an image has as many ids as its size wants, and patches of all images are one tensor."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokens = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer, ids = chat_tokenizer(*tokens)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(tokens))
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={**LANGUAGE, "vocab_size": len(tokenizer), "rope_parameters": rope} | ids,
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
        | {"patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1]},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    sizes = {"patch_size": 8, "size": {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return _write(folder, Qwen2_5_VLForConditionalGeneration(config), processor, seed)


def write_idefics(folder: Path, *, seed: int = 0) -> Path:
    """Write an Idefics 3, SmolVLM's kind: large images are cut into tiles."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    tokens = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    tokenizer, ids = chat_tokenizer(*tokens)
    config = Idefics3Config(
        vision_config=VISION,
        text_config={"model_type": "llama", **LANGUAGE, **ids, "vocab_size": len(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return _write(folder, Idefics3ForConditionalGeneration(config), processor, seed)


def write_blip(folder: Path, *, seed: int = 0) -> Path:
    """Write a BLIP-2: no chat, a prompt that its processor puts the image's ids in front of."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    tokenizer, ids = chat_tokenizer("<image>")
    text = {"model_type": "opt", **ids, "bos_token_id": tokenizer.bos_token_id, "vocab_size": len(tokenizer)}
    text |= {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"tie_word_embeddings": False}
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**TEXT, "encoder_hidden_size": 32, "vocab_size": len(tokenizer)},
        text_config={**text, "word_embed_proj_dim": 32, "max_position_embeddings": 128},
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer, num_query_tokens=4)
    return _write(folder, Blip2ForConditionalGeneration(config), processor, seed)


def clip_tokenizer():
    """Return transformers' own tokenizer of CLIP's byte pairs."""
    from transformers import CLIPTokenizer

    model = json.loads(Tokenizer().to_json())["model"]
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): index for token, index in model["vocab"].items()}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]])


def write_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a CLIP of OpenAI's kind."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    text = {**TEXT, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407} | PROJECTED
    config = CLIPConfig(text_config=text, vision_config=VISION | PROJECTED, **PROJECTED)
    return _saved(folder, drawn(CLIPModel(config), seed), clip_tokenizer(), CLIPImageProcessor(**CROPPED))

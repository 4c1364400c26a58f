"""Small models of transformers with random weights, written as `save_pretrained` writes the published ones."""

from __future__ import annotations

import string
from pathlib import Path

import torch

LETTERS = tuple(string.punctuation + string.digits + string.ascii_letters + "äéあ")


def gemma_tokenizer(**options):
    """Return a tokenizer of Gemma's kind: byte pairs, some of which are words, and bytes for what is not known."""
    from transformers import GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
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


def drawn(model, seed):
    """Return a model whose embeddings tell inputs apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
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
    drawn(model, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(folder)
    return folder


def write_metaclip(folder: Path, *, seed: int = 0) -> Path:
    """Write a MetaCLIP 2: a causal text tower that pools at the end token of XLM-V's tokenizer."""
    from transformers import CLIPImageProcessor, MetaClip2Config, MetaClip2Model

    tokenizer = xlm_tokenizer()
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "projection_dim": 24,
        "eos_token_id": 2,
    }
    vision = {**VISION, "projection_dim": 24}
    model = MetaClip2Model(MetaClip2Config(text_config=text, vision_config=vision, projection_dim=24))
    drawn(model, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**sizes).save_pretrained(folder)
    return folder

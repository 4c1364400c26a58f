r"""Train ViT-B/16 with a small text encoder on DataCompDR-12M: a row of table 5.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_vit_b16_12m_text.py mct_4 --micro-batch-size 256 \
               --data 'DataCompDR-12M/{00000000..00001023}.tar'
Try it:    python recipes/train_vit_b16_12m_text.py mct_4 --tiny
Hardware:  8 GPUs, each with 4 micro-batches of 256 in 7 GiB; the release used 32, with 256 samples each;
           any number of processes that divides the batch of 8,192
Time:      246 million samples seen; the paper gives 1.3 h per 12.8M of them on 8 A100
Result:    zero-shot top-1 on ImageNet-1k as published, beside each row; 12 layers without a RepMixer are the row
           `ensemble` of train_vit_b16_12m
Source:    MobileCLIP (arXiv 2311.17049), table 5
"""

from functools import partial

from mobileclip.encoders import MCtSpec
from mobileclip.recipes.training import run_recipe, titled, vit_b16_12m_run
from mobileclip.training import RunSpec

LAYERS = {6: 60.9, 4: 60.8, 2: 60.2, 1: 60.0, 0: 57.9}


def mct(depth: int) -> RunSpec:
    """Return the run with so many attention layers between two RepMixers."""
    return vit_b16_12m_run(MCtSpec(depth=depth))


ROWS = {
    f"mct_{depth}": titled(
        f"Read texts with {depth} attention layers between two RepMixers: {top1}", partial(mct, depth)
    )
    for depth, top1 in LAYERS.items()
}

if __name__ == "__main__":
    run_recipe(ROWS, "train_vit_b16_12m_text", __doc__)

r"""Train ViT-B/16 with a small text encoder on DataCompDR-12M, as in MobileCLIP's table 5.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_vit_b16_12m_text.py mct_4 \
               --data 'joined/{00000000..00001023}.tar'
Try it:    python recipes/train_vit_b16_12m_text.py mct_4 --tiny
Hardware:  8 GPUs, each with 4 micro-batches of 256 in 20 GiB; 7 GiB with --recompute, at 25 % more compute. The
           release used 32 GPUs with 256 samples each. Any number of processes that divides the batch of 8,192 works
Time:      246 million samples seen. The paper gives 1.3 h per 12.8M samples on 8 A100
Result:    zero-shot top-1 on ImageNet-1k as published, next to each row; the row `ensemble` of train_vit_b16_12m has 12
           attention layers and no RepMixer
Source:    MobileCLIP (arXiv 2311.17049), table 5

Rows:
    mct_6  Encode texts with 6 attention layers between two RepMixers: 60.9
    mct_4  Encode texts with 4 attention layers between two RepMixers: 60.8
    mct_2  Encode texts with 2 attention layers between two RepMixers: 60.2
    mct_1  Encode texts with 1 attention layer between two RepMixers: 60.0
    mct_0  Encode texts with 0 attention layers between two RepMixers: 57.9
"""

from mobileclip.encoders import MCtSpec
from mobileclip.recipes import as_released, run_recipe, vit_b16_12m_run
from mobileclip.training import RunSpec

ROWS: dict[str, RunSpec] = {f"mct_{depth}": vit_b16_12m_run(MCtSpec(depth=depth)) for depth in (6, 4, 2, 1, 0)}

if __name__ == "__main__":
    run_recipe(ROWS, released=as_released)

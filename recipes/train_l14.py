r"""Train MobileCLIP-L-14 on DataCompDR-1B.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_l14.py --micro-batch-size 512 \
               --data 'DataCompDR-1B/{00..64}/{00000000..00000999}.tar' 'DataCompDR-1B/65/{00000000..00000535}.tar'
Try it:    python recipes/train_l14.py --tiny
Hardware:  8 GPUs, each with 16 micro-batches of 512 in 31 GiB; the release trained B on 128, with 512 samples each;
           any number of processes that divides the batch of 65,536
Time:      13 billion samples seen; the paper gives 1.3 h per 12.8M of them for ViT-B/16 on 8 A100
Result:    79.5 % zero-shot top-1 on ImageNet-1k, 66.9 on average of 38 data sets, as published
Source:    MobileCLIP2 (arXiv 2508.20691) for the model, MobileCLIP (arXiv 2311.17049), table 12, for its training
"""

from __future__ import annotations

from mobileclip import specs
from mobileclip.recipes.training import mobileclip_run, run_recipe, with_drop_path
from mobileclip.training import RunSpec


def train_l14() -> RunSpec:
    """Return the run: data and training are flags of the command line, the model is not."""
    return mobileclip_run(with_drop_path(specs.mobileclip_l14(), 0.1), distill_weight=1.0)


if __name__ == "__main__":
    run_recipe(train_l14, "train_l14", __doc__)

r"""Train MobileCLIP-B on DataCompDR-1B.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_b.py \
               --data 'joined/{00..64}/{00000000..00000999}.tar' \
               --data 'joined/65/{00000000..00000535}.tar'
Try it:    python recipes/train_b.py --tiny
Hardware:  8 GPUs, each with 16 micro-batches of 512 in 41 GiB; 16 GiB with --recompute, at 25 % more compute.
           The release trained B on 128 GPUs with 512 samples each. Any number of processes that divides the batch of
           65,536 works
Time:      13 billion samples seen. The paper gives 1.3 h per 12.8M samples for ViT-B/16 on 8 A100
Result:    76.8 % zero-shot top-1 on ImageNet-1k and 65.2 on average over 38 data sets, as published
Source:    MobileCLIP (arXiv 2311.17049), section 5 and table 12
"""

from mobileclip import specs
from mobileclip.recipes import as_released_b, mobileclip_run, run_recipe
from mobileclip.training import RunSpec

RUN: RunSpec = mobileclip_run(specs.mobileclip_b(), peak=1e-3, distill_weight=0.75)

if __name__ == "__main__":
    run_recipe(RUN, released=as_released_b)

r"""Train MobileCLIP-L-14 on DataCompDR-1B.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_l14.py \
               --data 'joined/{00..64}/{00000000..00000999}.tar' \
               --data 'joined/65/{00000000..00000535}.tar'
Try it:    python recipes/train_l14.py --tiny
Hardware:  8 GPUs, each with 16 micro-batches of 512 in 31 GiB with recomputation (25 % more compute), 124 GiB without.
           The release trained B on 128 GPUs with 512 samples each. Any number of processes that divides the batch of
           65,536 works
Time:      13 billion samples seen. The paper gives 1.3 h per 12.8M samples for ViT-B/16 on 8 A100
Result:    79.5 % zero-shot top-1 on ImageNet-1k and 66.9 on average over 38 data sets, as published
Source:    MobileCLIP2 (arXiv 2508.20691) for the model; MobileCLIP (arXiv 2311.17049), table 12, for the training
"""

from mobileclip import specs
from mobileclip.recipes import as_released, mobileclip_run, run_recipe, with_drop_path
from mobileclip.training import Memory, RunSpec

RUN: RunSpec = mobileclip_run(
    with_drop_path(specs.mobileclip_l14(), 0.1), peak=1e-3, memory=Memory(micro_batch=512, recompute=True)
)

if __name__ == "__main__":
    run_recipe(RUN, released=as_released)

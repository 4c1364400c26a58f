r"""Train MobileCLIP2-L-14 on DFNDR-2B.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_mobileclip2_l14.py \
               --data 'DFNDR-2B/{FIRST..LAST}.tar'
Try it:    python recipes/train_mobileclip2_l14.py --tiny
Hardware:  8 GPUs, each with 16 micro-batches of 512 in 31 GiB with recomputation (25 % more compute), 124 GiB without.
           The release's script uses 128 GPUs with 512 samples each. Any number of processes that divides the batch of
           65,536 works
Time:      13 billion samples seen; the papers give no training time
Result:    81.9 % zero-shot top-1 on ImageNet-1k and 67.8 on average over 38 data sets, as published
Source:    MobileCLIP2 (arXiv 2508.20691)
"""

from mobileclip import specs
from mobileclip.recipes import as_released_dfndr2b, mobileclip2_run, run_recipe, with_drop_path
from mobileclip.training import Memory, RunSpec

RUN: RunSpec = mobileclip2_run(
    with_drop_path(specs.mobileclip2_l14(), 0.1), peak=1e-3, memory=Memory(micro_batch=512, recompute=True)
)

if __name__ == "__main__":
    run_recipe(RUN, released=as_released_dfndr2b)

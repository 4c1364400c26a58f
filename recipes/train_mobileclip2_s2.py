r"""Train MobileCLIP2-S2 on DFNDR-2B.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_mobileclip2_s2.py \
               --data 'DFNDR-2B/{FIRST..LAST}.tar'
Try it:    python recipes/train_mobileclip2_s2.py --tiny
Hardware:  8 GPUs, each with 16 micro-batches of 512 in 27 GiB with recomputation (25 % more compute), 108 GiB without.
           The release's script uses 128 GPUs with 512 samples each. Any number of processes that divides the batch of
           65,536 works
Time:      13 billion samples seen; the papers give no training time
Result:    77.2 % zero-shot top-1 on ImageNet-1k and 64.1 on average over 38 data sets, as published
Source:    MobileCLIP2 (arXiv 2508.20691)
"""

from mobileclip import specs
from mobileclip.recipes import as_released_dfndr2b, mobileclip2_run, run_recipe
from mobileclip.training import Memory, RunSpec

RUN: RunSpec = mobileclip2_run(
    specs.mobileclip2_s2(), peak=1e-3, warmup_steps=10_000, memory=Memory(micro_batch=512, recompute=True)
)

if __name__ == "__main__":
    run_recipe(RUN, released=as_released_dfndr2b)

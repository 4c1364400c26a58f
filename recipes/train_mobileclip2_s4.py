r"""Train MobileCLIP2-S4 on DFNDR-2B.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_mobileclip2_s4.py \
               --data 'DFNDR-2B/{FIRST..LAST}.tar'
Try it:    python recipes/train_mobileclip2_s4.py --tiny
Hardware:  8 GPUs, each with 28 micro-batches of 512 in 44 GiB with recomputation (25 % more compute), 174 GiB without.
           The release's script uses 128 GPUs with 512 samples each. Any number of processes that divides the batch of
           114,688 works
Time:      13 billion samples seen; the papers give no training time
Result:    81.9 % zero-shot top-1 on ImageNet-1k and 67.5 on average over 38 data sets, as published
Source:    MobileCLIP2 (arXiv 2508.20691)
"""

from mobileclip import specs
from mobileclip.recipes import as_released_dfndr2b, mobileclip2_run, run_recipe
from mobileclip.training import Memory, RunSpec

RUN: RunSpec = mobileclip2_run(
    specs.mobileclip2_s4(),
    peak=1e-3,
    batch_size=114_688,
    total_steps=113_350,
    memory=Memory(micro_batch=512, recompute=True),
)

if __name__ == "__main__":
    run_recipe(RUN, released=as_released_dfndr2b)

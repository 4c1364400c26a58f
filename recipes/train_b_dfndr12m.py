r"""Train MobileCLIP2-B on DFNDR-12M: on all sets of synthetic captions, or on one of them.

The flag `--pipeline.caption-sets '^syn_text_NAME$'` takes another one.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_b_dfndr12m.py all_sets --micro-batch-size 256 \
               --data 'DFNDR-12M/{00000000..00001023}.tar'
Try it:    python recipes/train_b_dfndr12m.py all_sets --tiny
Hardware:  8 GPUs, each with 4 micro-batches of 256 in 8 GiB; the release's script has 32, with 256 samples each;
           any number of processes that divides the batch of 8,192
Time:      246 million samples seen; the papers give no hours
Result:    not published
Source:    MobileCLIP2 (arXiv 2508.20691), and the released run_dfndr12m.sh; the set is that of run_dfndr2b.sh
"""

from mobileclip import specs
from mobileclip.recipes.training import mobileclip2_run, run_recipe, with_data
from mobileclip.training import RunSpec


def all_sets() -> RunSpec:
    """Distil from real captions, and from synthetic ones of every set."""
    return mobileclip2_run(
        specs.mobileclip2_b(), warmup_steps=1_000, batch_size=8_192, total_steps=30_000, range_augment=None
    )


def mscoco38k() -> RunSpec:
    """Distil from the synthetic captions of one captioner, tuned on 38k captions of MSCOCO."""
    return with_data(all_sets(), caption_sets="^syn_text_dfn_mscoco38k$")


def real() -> RunSpec:
    """Distil from real captions alone."""
    return with_data(all_sets(), captions="real")


ROWS = {row.__name__: row for row in (all_sets, mscoco38k, real)}

if __name__ == "__main__":
    run_recipe(ROWS, "train_b_dfndr12m", __doc__)

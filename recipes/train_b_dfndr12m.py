r"""Train MobileCLIP2-B on DFNDR-12M: on all it stores, or on a row of what MobileCLIP2's ablations compare.

The flag `--pipeline.caption-sets '^syn_text_NAME$'` takes another set of captions. Rows of a context are for data that
was reinforced with the published captioners, whose sets are called like their files.

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

from functools import partial

import attrs

from mobileclip import specs
from mobileclip.data import ColumnPipelineSpec
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.recipes.training import mobileclip2_run, run_recipe, titled, with_data, with_loss
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


def pair(run: RunSpec) -> ReinforcedLossSpec:
    """Return the loss of a run of two teachers."""
    assert isinstance(run.training.loss, ReinforcedLossSpec), "MobileCLIP2 distils"
    return run.training.loss


def teacher(number: int) -> RunSpec:
    """Return the run of one teacher of the pair."""
    run = all_sets()
    loss = pair(run)
    dim = loss.teacher_dims[number]
    alone = attrs.evolve(loss, teacher_dims=(dim,), teacher_logit_scales=(loss.teacher_logit_scales[number],))
    run = attrs.evolve(run, data=ColumnPipelineSpec.of(run.data, teacher_columns=(number * dim, (number + 1) * dim)))
    return with_loss(run, alone)


def scales(factor: float) -> RunSpec:
    """Return the run whose teachers have other logit scales, which are the inverse of their temperature."""
    run = all_sets()
    loss = pair(run)
    return with_loss(
        run, attrs.evolve(loss, teacher_logit_scales=tuple(factor * one for one in loss.teacher_logit_scales))
    )


ROWS = {
    **{row.__name__: row for row in (all_sets, mscoco38k, real)},
    **{
        f"context_{num}": titled(
            f"Distil from the sets of captioners of {num} positions.",
            partial(with_data, all_sets(), caption_sets=f".*_context{num}$"),
        )
        for num in (77, 128, 256)
    },
    **{
        f"captions_{num}": titled(
            f"Distil from {num} of 5 captions of every set.",
            partial(with_data, all_sets(), num_captions=num),
        )
        for num in (1, 2)
    },
    "teacher_l14": titled("Distil from DFN2B-CLIP-ViT-L-14 alone.", partial(teacher, 0)),
    "teacher_l14_39b": titled("Distil from DFN2B-CLIP-ViT-L-14-39B alone.", partial(teacher, 1)),
    "scales_half": titled("Distil with half the teachers' logit scales.", partial(scales, 0.5)),
    "scales_twice": titled("Distil with twice the teachers' logit scales.", partial(scales, 2.0)),
}

if __name__ == "__main__":
    run_recipe(ROWS, "train_b_dfndr12m", __doc__)

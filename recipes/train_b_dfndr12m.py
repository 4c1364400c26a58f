r"""Train MobileCLIP2-B on DFNDR-12M: on all captions, or with the options of one of MobileCLIP2's ablations.

The flag `--data.caption-sets '^syn_text_NAME$'` selects a different caption set. The rows `context_...` need data
reinforced with the published captioners, in caption sets with the names of the captioners' files.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_b_dfndr12m.py all_sets \
               --data 'DFNDR-12M/{00000000..00001023}.tar'
Try it:    python recipes/train_b_dfndr12m.py all_sets --tiny
Hardware:  8 GPUs, each with 4 micro-batches of 256 in 21 GiB; 8 GiB with --recompute, at 25 % more compute. The
           release's script uses 32 GPUs with 256 samples each. Any number of processes that divides the batch of 8,192
           works
Time:      246 million samples seen; the papers give no training time
Result:    not published
Source:    MobileCLIP2 (arXiv 2508.20691), and the released run_dfndr12m.sh; run_dfndr2b.sh for the caption set

Rows:
    all_sets         Distil from real captions and from synthetic captions of every set
    mscoco38k        Distil from synthetic captions of one captioner, tuned on MSCOCO
    real             Distil from real captions alone
    context_77       Distil from captions by captioners with 77 text positions
    context_128      Distil from captions by captioners with 128 text positions
    context_256      Distil from captions by captioners with 256 text positions
    captions_1       Distil from 1 of 5 captions of every set
    captions_2       Distil from 2 of 5 captions of every set
    teacher_l14      Distil from DFN2B-CLIP-ViT-L-14 alone
    teacher_l14_39b  Distil from DFN2B-CLIP-ViT-L-14-39B alone
    scales_half      Distil with half the teachers' logit scales
    scales_twice     Distil with twice the teachers' logit scales
"""

from mobileclip import specs
from mobileclip.recipes import as_released, mobileclip2_run, run_recipe, with_data, with_one_teacher, with_scales
from mobileclip.training import Memory, RunSpec

RUN = mobileclip2_run(
    specs.mobileclip2_b(),
    peak=1e-3,
    warmup_steps=1_000,
    batch_size=8_192,
    total_steps=30_000,
    range_augment=None,
    memory=Memory(micro_batch=256),
)
ROWS: dict[str, RunSpec] = {
    "all_sets": RUN,
    "mscoco38k": with_data(RUN, caption_sets="^syn_text_dfn_mscoco38k$"),
    "real": with_data(RUN, captions="real"),
    **{f"context_{n}": with_data(RUN, caption_sets=f".*_context{n}$") for n in (77, 128, 256)},
    **{f"captions_{n}": with_data(RUN, num_captions=n) for n in (1, 2)},
    "teacher_l14": with_one_teacher(RUN, 0),
    "teacher_l14_39b": with_one_teacher(RUN, 1),
    "scales_half": with_scales(RUN, 0.5),
    "scales_twice": with_scales(RUN, 2.0),
}

if __name__ == "__main__":
    run_recipe(ROWS, released=as_released)

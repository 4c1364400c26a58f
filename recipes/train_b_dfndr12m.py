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
from typing import Any

from mobileclip import specs
from mobileclip.recipes.training import mobileclip2_run, run_recipe, titled, with_data, with_one_teacher, with_scales
from mobileclip.training import RunSpec


def all_sets() -> RunSpec:
    """Distil from real captions, and from synthetic ones of every set."""
    return mobileclip2_run(
        specs.mobileclip2_b(), warmup_steps=1_000, batch_size=8_192, total_steps=30_000, range_augment=None
    )


BY_DATA: dict[str, tuple[str, dict[str, Any]]] = {
    "mscoco38k": ("synthetic captions of one captioner, tuned on MSCOCO", {"caption_sets": "^syn_text_dfn_mscoco38k$"}),
    "real": ("real captions alone", {"captions": "real"}),
    **{f"context_{n}": (f"captioners of {n} positions", {"caption_sets": f".*_context{n}$"}) for n in (77, 128, 256)},
    **{f"captions_{n}": (f"{n} of 5 captions of every set", {"num_captions": n}) for n in (1, 2)},
}
TEACHERS = {"teacher_l14": "DFN2B-CLIP-ViT-L-14", "teacher_l14_39b": "DFN2B-CLIP-ViT-L-14-39B"}
SCALES = {"half": 0.5, "twice": 2.0}
ROWS = {
    "all_sets": all_sets,
    **{
        name: titled(f"Distil from {title}.", partial(with_data, all_sets(), **choices))
        for name, (title, choices) in BY_DATA.items()
    },
    **{
        name: titled(f"Distil from {title} alone.", partial(with_one_teacher, all_sets(), number))
        for number, (name, title) in enumerate(TEACHERS.items())
    },
    **{
        f"scales_{name}": titled(
            f"Distil with {name} the teachers' logit scales.", partial(with_scales, all_sets(), by)
        )
        for name, by in SCALES.items()
    },
}

if __name__ == "__main__":
    run_recipe(ROWS, "train_b_dfndr12m", __doc__)

r"""Train MobileCLIP2-B on DFNDR-12M: on all it stores, or on a row of what MobileCLIP2's ablations compare.

The flag `--pipeline.caption-sets '^syn_text_NAME$'` takes another set of captions. Rows of a context are for data that
was reinforced with the published captioners, whose sets are called like their files.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_b_dfndr12m.py all_sets --memory 256 \
               --data 'DFNDR-12M/{00000000..00001023}.tar'
Try it:    python recipes/train_b_dfndr12m.py all_sets --tiny
Hardware:  8 GPUs, each with 4 micro-batches of 256 in 8 GiB; the release's script has 32, with 256 samples each;
           any number of processes that divides the batch of 8,192
Time:      246 million samples seen; the papers give no hours
Result:    not published
Source:    MobileCLIP2 (arXiv 2508.20691), and the released run_dfndr12m.sh; the set is that of run_dfndr2b.sh
"""

from mobileclip import specs
from mobileclip.recipes import as_released, mobileclip2_run, run_recipe, with_data, with_one_teacher, with_scales

RUN = mobileclip2_run(
    specs.mobileclip2_b(), warmup_steps=1_000 / 30_000, batch_size=8_192, total_steps=30_000, range_augment=None
)
BY_DATA = {
    "mscoco38k": ("synthetic captions of one captioner, tuned on MSCOCO", {"caption_sets": "^syn_text_dfn_mscoco38k$"}),
    "real": ("real captions alone", {"captions": "real"}),
    **{f"context_{n}": (f"captioners of {n} positions", {"caption_sets": f".*_context{n}$"}) for n in (77, 128, 256)},
    **{f"captions_{n}": (f"{n} of 5 captions of every set", {"num_captions": n}) for n in (1, 2)},
}
TEACHERS = {"teacher_l14": "DFN2B-CLIP-ViT-L-14", "teacher_l14_39b": "DFN2B-CLIP-ViT-L-14-39B"}
ROWS = {
    "all_sets": ("Distil from real captions, and from synthetic ones of every set.", RUN),
    **{name: (f"Distil from {title}.", with_data(RUN, **choices)) for name, (title, choices) in BY_DATA.items()},
    **{
        name: (f"Distil from {title} alone.", with_one_teacher(RUN, number))
        for number, (name, title) in enumerate(TEACHERS.items())
    },
    **{
        f"scales_{name}": (f"Distil with {name} the teachers' logit scales.", with_scales(RUN, by))
        for name, by in {"half": 0.5, "twice": 2.0}.items()
    },
}


if __name__ == "__main__":
    run_recipe(ROWS, released=as_released)

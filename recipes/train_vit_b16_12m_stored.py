r"""Train ViT-B/16 on some of what DataCompDR-12M stores: a row of table 4a or 4b.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_vit_b16_12m_stored.py augmentations_5 --micro-batch-size 256 \
               --data 'DataCompDR-12M/{00000000..00001023}.tar'
Try it:    python recipes/train_vit_b16_12m_stored.py augmentations_5 --tiny
Hardware:  8 GPUs, each with 4 micro-batches of 256 in 7 GiB; the release used 32, with 256 samples each;
           any number of processes that divides the batch of 8,192
Time:      369 million samples seen; the paper gives 1.3 h per 12.8M of them on 8 A100
Result:    zero-shot top-1 on ImageNet-1k as published, beside each row
Source:    MobileCLIP (arXiv 2311.17049), tables 4a and 4b
"""

from functools import partial

from mobileclip.recipes.training import run_recipe, titled, vit_b16_12m_run, with_data
from mobileclip.training import RunSpec

AUGMENTATIONS = {1: 60.6, 2: 63.3, 5: 64.8, 10: 64.7, 30: 64.7}
CAPTIONS = {0: 60.7, 1: 64.9, 2: 65.2, 3: 65.2, 4: 64.8, 5: 64.7}


def augmentations(num: int) -> RunSpec:
    """Return the run on the first augmentations of every image."""
    return with_data(vit_b16_12m_run(total_steps=45_000), num_augmentations=num)


def captions(num: int) -> RunSpec:
    """Return the run on the first synthetic captions of every image, beside its real one."""
    chosen = {"captions": "real"} if num == 0 else {"num_captions": num}
    return with_data(vit_b16_12m_run(total_steps=45_000), **chosen)


ROWS = {
    f"augmentations_{num}": titled(f"Distil from {num} of 30 augmentations: {top1}", partial(augmentations, num))
    for num, top1 in AUGMENTATIONS.items()
} | {
    f"captions_{num}": titled(f"Distil from {num} of 5 synthetic captions: {top1}", partial(captions, num))
    for num, top1 in CAPTIONS.items()
}

if __name__ == "__main__":
    run_recipe(ROWS, "train_vit_b16_12m_stored", __doc__)

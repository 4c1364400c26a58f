r"""Train ViT-B/16 on DataCompDR-12M: a row of table 2 or 3a, plain CLIP among them.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_vit_b16_12m.py ensemble --micro-batch-size 256 \
               --data 'DataCompDR-12M/{00000000..00001023}.tar'
Try it:    python recipes/train_vit_b16_12m.py ensemble --tiny
Hardware:  8 GPUs, each with 4 micro-batches of 256 in 7 GiB; the release used 32, with 256 samples each;
           any number of processes that divides the batch of 8,192
Time:      246 million samples seen; the paper gives 1.3 h per 12.8M of them on 8 A100, plain and reinforced alike
Result:    zero-shot top-1 on ImageNet-1k / mean R@1 on Flickr30k as published, beside each row
Source:    MobileCLIP (arXiv 2311.17049), tables 2 and 3a
"""

from functools import partial

from mobileclip.data import crop_augmentation
from mobileclip.losses import ContrastiveLossSpec, ReinforcedLossSpec
from mobileclip.recipes.training import run_recipe, titled, vit_b16_12m_run, with_data, with_loss, with_one_teacher
from mobileclip.training import RunSpec


def ensemble() -> RunSpec:
    """Distil from both teachers on both captions, w = 1: 61.7 / 72.0."""
    return vit_b16_12m_run()


def plain(captions: str = "real") -> RunSpec:
    """Plain CLIP on real captions and weakly augmented images: 44.5 / 41.8."""
    run = with_data(ensemble(), reinforced=False, captions=captions, augmentation=crop_augmentation(224))
    return with_loss(run, ContrastiveLossSpec())


def synthetic_captions() -> RunSpec:
    """Plain CLIP on real and synthetic captions: 51.9 / 69.3."""
    return plain("both")


def one_teacher() -> RunSpec:
    """Distil from one of the teachers: 59.3 / 70.5; on data reinforced with `--augmentation crop`: 54.5 / 66.1."""
    return with_one_teacher(ensemble(), 1)


def weight_07() -> RunSpec:
    """Distil with w = 0.7, beside the contrastive loss: 60.7 / 74.2."""
    return with_loss(ensemble(), ReinforcedLossSpec(contrastive_weight=0.3, distill_weight=0.7))


CAPTIONS = {"real": "56.4 / 57.0", "synthetic": "49.8 / 72.2", "either": "57.3 / 68.6"}
ROWS = {row.__name__: row for row in (plain, synthetic_captions, one_teacher, ensemble, weight_07)} | {
    f"captions_{kind}": titled(f"Distil on {kind} captions: {result}", partial(with_data, ensemble(), captions=kind))
    for kind, result in CAPTIONS.items()
}

if __name__ == "__main__":
    run_recipe(ROWS, "train_vit_b16_12m", __doc__)

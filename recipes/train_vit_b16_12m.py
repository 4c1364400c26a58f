r"""Train ViT-B/16 on DataCompDR-12M like a row of MobileCLIP's table 2 or 3a, including plain CLIP.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_vit_b16_12m.py ensemble \
               --data 'joined/{00000000..00001023}.tar'
Try it:    python recipes/train_vit_b16_12m.py ensemble --tiny
Hardware:  8 GPUs, each with 4 micro-batches of 256 in 20 GiB; 7 GiB with --recompute, at 25 % more compute. The
           release used 32 GPUs with 256 samples each. Any number of processes that divides the batch of 8,192 works
Time:      246 million samples seen. The paper gives 1.3 h per 12.8M samples on 8 A100, both for plain and for
           reinforced training
Result:    zero-shot top-1 on ImageNet-1k / mean R@1 on Flickr30k as published, next to each row
Source:    MobileCLIP (arXiv 2311.17049), tables 2 and 3a

Rows:
    plain               Plain CLIP on real captions and weakly augmented images: 44.5 / 41.8
    synthetic_captions  Plain CLIP on real and synthetic captions: 51.9 / 69.3
    one_teacher         Distil from one of the teachers: 59.3 / 70.5;
                        on data reinforced with `--augmentation crop`: 54.5 / 66.1
    ensemble            Distil from both teachers on real and synthetic captions, w = 1: 61.7 / 72.0
    weight_07           Distil with w = 0.7, in addition to the contrastive loss: 60.7 / 74.2
    captions_real       Distil on real captions: 56.4 / 57.0
    captions_synthetic  Distil on synthetic captions: 49.8 / 72.2
    captions_either     Distil on either real or synthetic captions: 57.3 / 68.6
"""

from mobileclip.data import crop_augmentation
from mobileclip.losses import ContrastiveLossSpec, ReinforcedLossSpec
from mobileclip.recipes import as_released, run_recipe, vit_b16_12m_run, with_data, with_loss, with_one_teacher
from mobileclip.training import RunSpec

RUN = vit_b16_12m_run()
CLIP = with_loss(with_data(RUN, reinforced=False, augmentation=crop_augmentation(224)), ContrastiveLossSpec())
ROWS: dict[str, RunSpec] = {
    "plain": with_data(CLIP, captions="real"),
    "synthetic_captions": with_data(CLIP, captions="both"),
    "one_teacher": with_one_teacher(RUN, 1),
    "ensemble": RUN,
    "weight_07": with_loss(RUN, ReinforcedLossSpec(contrastive_weight=0.3, distill_weight=0.7)),
    **{f"captions_{kind}": with_data(RUN, captions=kind) for kind in ("real", "synthetic", "either")},
}

if __name__ == "__main__":
    run_recipe(ROWS, released=as_released)

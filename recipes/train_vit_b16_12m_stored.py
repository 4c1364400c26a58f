r"""Train ViT-B/16 on some of what DataCompDR-12M stores: a row of table 4a or 4b.

Command:   torchrun --nproc-per-node 8 \
               recipes/train_vit_b16_12m_stored.py augmentations_5 --memory 256 \
               --data 'DataCompDR-12M/{00000000..00001023}.tar'
Try it:    python recipes/train_vit_b16_12m_stored.py augmentations_5 --tiny
Hardware:  8 GPUs, each with 4 micro-batches of 256 in 7 GiB; the release used 32, with 256 samples each;
           any number of processes that divides the batch of 8,192
Time:      369 million samples seen; the paper gives 1.3 h per 12.8M of them on 8 A100
Result:    zero-shot top-1 on ImageNet-1k as published, beside each row
Source:    MobileCLIP (arXiv 2311.17049), tables 4a and 4b
"""

from mobileclip.recipes import as_released, run_recipe, vit_b16_12m_run, with_data

RUN = vit_b16_12m_run(total_steps=45_000)
AUGMENTATIONS = {1: 60.6, 2: 63.3, 5: 64.8, 10: 64.7, 30: 64.7}
CAPTIONS = {1: 64.9, 2: 65.2, 3: 65.2, 4: 64.8, 5: 64.7}
ROWS = {
    **{
        f"augmentations_{n}": (f"Distil from {n} of 30 augmentations: {top1}", with_data(RUN, num_augmentations=n))
        for n, top1 in AUGMENTATIONS.items()
    },
    "captions_0": ("Distil from real captions alone: 60.7", with_data(RUN, captions="real")),
    **{
        f"captions_{n}": (f"Distil from {n} of 5 synthetic captions: {top1}", with_data(RUN, num_captions=n))
        for n, top1 in CAPTIONS.items()
    },
}


if __name__ == "__main__":
    run_recipe(ROWS, released=as_released)

r"""Train MCi0, MCi1 or MCi2 as a classifier on ImageNet-1k, as in MobileCLIP's table 11.

Command:   torchrun --nproc-per-node 8 recipes/train_imagenet_mci.py mci0 \
               --data imagenet/train --validation imagenet/val
Try it:    python recipes/train_imagenet_mci.py mci0 --tiny
Hardware:  FastViT's script trains on 8 GPUs with 128 images each. Any number of processes that divides the batch of
           1,024 works
Time:      384 million images seen in 300 epochs; the papers give no training time
Result:    top-1 on ImageNet-1k as published, next to each row; not trained here
Source:    MobileCLIP (arXiv 2311.17049), table 11; FastViT (arXiv 2303.14189) and its released script, with the drop
           path rate of FastViT's model of the nearest size

Rows:
    mci0  Train MCi0, 11.8M parameters when folded: 82.2
    mci1  Train MCi1, 21.9M parameters when folded: 83.8
    mci2  Train MCi2, 36.3M parameters when folded: 84.5
"""

from mobileclip import specs
from mobileclip.recipes import imagenet_run, run_recipe
from mobileclip.training import RunSpec

ROWS: dict[str, RunSpec] = {
    "mci0": imagenet_run(specs.mci0(), drop_path=0.1),
    "mci1": imagenet_run(specs.mci1(), drop_path=0.1),
    "mci2": imagenet_run(specs.mci2(), drop_path=0.2),
}

if __name__ == "__main__":
    run_recipe(ROWS)

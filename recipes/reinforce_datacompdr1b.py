"""Reinforce DataComp-1B as DataCompDR-1B was: 10 augmentations, 5 synthetic captions, two ViT-L/14 teachers.

Command:   python recipes/reinforce_datacompdr1b.py --data DataComp-1B --output DataCompDR-1B
Try it:    python recipes/reinforce_datacompdr1b.py --tiny
Hardware:  one process per GPU, or `--engine ray` for a cluster
Time:      `--dry-run` measures the first shard and extrapolates; docs/costs.md explains
Result:    shards that the release's loader reads, and reinforcement.json; `mobileclip data check` checks them
Source:    MobileCLIP (arXiv 2311.17049), section 4
"""

from __future__ import annotations

from mobileclip.data import datacompdr_augmentation
from mobileclip.recipes.reinforcing import run_recipe
from mobileclip.reinforce import CocaCaptioner, OpenClipTeacher, ReinforcementSpec


def reinforce_datacompdr1b(source: str, output: str) -> ReinforcementSpec:
    """Return the choices of DataCompDR-1B."""
    return ReinforcementSpec(
        source=source,
        output=output,
        teachers=(
            OpenClipTeacher(model="ViT-L-14", pretrained="openai", logit_scale=100.0, precision="bfloat16"),
            OpenClipTeacher(
                model="ViT-L-14", pretrained="datacomp_xl_s13b_b90k", logit_scale=100.0, precision="bfloat16"
            ),
        ),
        captioner=CocaCaptioner(num_captions=5, top_p=0.9),
        augmentation=datacompdr_augmentation(224),
        num_augmentations=10,
        layout="pth.gz",
    )


if __name__ == "__main__":
    run_recipe(reinforce_datacompdr1b, "DataCompDR-1B", __doc__)

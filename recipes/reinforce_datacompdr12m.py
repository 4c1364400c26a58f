"""Reinforce DataComp-12M like DataCompDR-12M: 30 augmentations, 5 synthetic captions, two ViT-L/14 teachers.

Command:   python recipes/reinforce_datacompdr12m.py --data DataComp-12M --output DataCompDR-12M
Try it:    python recipes/reinforce_datacompdr12m.py --tiny
Hardware:  one process per GPU, or `--engine ray` for a cluster
Time:      `--dry-run` measures the first shard and extrapolates; see docs/reinforcing.md
Result:    shards for the release's loader, and reinforcement.json; `mobileclip data check` checks the shards
Source:    MobileCLIP (arXiv 2311.17049), section 4
"""

from mobileclip.recipes import datacompdr_reinforcement, run_recipe
from mobileclip.reinforce import ReinforcementSpec

RUN: ReinforcementSpec = datacompdr_reinforcement(num_augmentations=30)

if __name__ == "__main__":
    run_recipe(RUN)

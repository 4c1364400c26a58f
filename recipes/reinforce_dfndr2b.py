"""Reinforce DFN-2B like DFNDR-2B: 2 augmentations, 5 synthetic captions, two DFN ViT-L/14 teachers.

The captioner was trained on DFN-2B and tuned on MSCOCO; the released training script uses this captioner's captions.
Other captioners are published as apple/mobileclip2_coca_dfn2b_s13b_*. Pass one or more captioners with
--captioner-weights; each of several captioners writes a caption set with the name of the captioner's file. The paper
tuned the teachers' logit scales; for other teachers, `mobileclip data tune-scale` finds a starting point.

Command:   python recipes/reinforce_dfndr2b.py --data DFN-2B --output DFNDR-2B
Try it:    python recipes/reinforce_dfndr2b.py --tiny
Hardware:  one process per GPU, or `--engine ray` for a cluster
Time:      `--dry-run` measures the first shard and extrapolates; see docs/reinforcing.md
Result:    shards for the release's loader, and reinforcement.json; `mobileclip data check` checks the shards
Source:    MobileCLIP2 (arXiv 2508.20691), section 3
"""

from mobileclip.data import datacompdr_augmentation
from mobileclip.recipes import run_recipe
from mobileclip.reinforce import CheckpointCaptioner, OpenClipTeacher, ReinforcementSpec

CAPTIONER = "hf-hub:apple/mobileclip2_coca_dfn2b_s13b_mscoco38k_s12m_context77"
RUN: ReinforcementSpec = ReinforcementSpec(
    teachers=(
        OpenClipTeacher(
            model="hf-hub:apple/DFN2B-CLIP-ViT-L-14", pretrained=None, logit_scale=70.0, precision="bfloat16"
        ),
        OpenClipTeacher(
            model="hf-hub:apple/DFN2B-CLIP-ViT-L-14-39B", pretrained=None, logit_scale=60.0, precision="bfloat16"
        ),
    ),
    captioner=CheckpointCaptioner(checkpoint=CAPTIONER, num_captions=5, top_p=0.9),
    caption_set="syn_text_dfn_mscoco38k",
    augmentation=datacompdr_augmentation(224),
    num_augmentations=2,
    layout="pth.gz",
)

if __name__ == "__main__":
    run_recipe(RUN)

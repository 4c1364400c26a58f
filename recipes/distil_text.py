"""Distil a text tower from texts alone: of another language, or smaller.

Command:   python recipes/distil_text.py -m mobileclip_s2.pt --data de=german.txt pairs.tsv --shares de=2,en=1
Try it:    python recipes/distil_text.py --tiny
Hardware:  any CPU for a student of a few layers; a GPU for a deep one
Time:      --tiny takes seconds of one core; the teacher's embeddings are stored once, and the same command goes on
Result:    outputs/distil_text: texts with the teacher's embeddings, model.safetensors, metrics.jsonl
Source:    Carlsson et al., "Cross-lingual and Multilingual CLIP", 2022; Park et al., "Relational Knowledge
           Distillation", 2019

The student's embeddings are in the teacher's space, so that it stands beside the teacher's image tower. Texts are
lines, or tables of a text and what the teacher reads in its place: a translation, or the same text. docs/training.md
says what each choice is for.
"""

from mobileclip.recipes import run_recipe
from mobileclip.recipes.distilling import DistilSpec

RUN: DistilSpec = DistilSpec()

if __name__ == "__main__":
    run_recipe(RUN)

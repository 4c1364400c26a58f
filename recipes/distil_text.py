"""Distil a text tower for another language, or a smaller text tower, from texts alone.

Command:   python recipes/distil_text.py -m mobileclip_s2.pt --data de=german.txt pairs.tsv --shares de=2,en=1
Try it:    python recipes/distil_text.py --tiny
Hardware:  any CPU for a student of a few layers; a GPU for a deep student
Time:      --tiny takes seconds on one core. The teacher encodes the texts once; the same command resumes the run
Result:    outputs/distil_text: texts with the teacher's embeddings, model.safetensors, metrics.jsonl
Source:    Carlsson et al., "Cross-lingual and Multilingual CLIP", 2022; Park et al., "Relational Knowledge
           Distillation", 2019

The student's embeddings are in the teacher's space, so that the student works with the teacher's image tower. The data
are lines of text, or tables with a text for the student and a text for the teacher, such as a translation.
docs/training.md explains each choice.
"""

from mobileclip.recipes import run_recipe
from mobileclip.recipes.distilling import DistilSpec

RUN: DistilSpec = DistilSpec()

if __name__ == "__main__":
    run_recipe(RUN)

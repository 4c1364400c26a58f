"""Evaluate models on the 38 data sets of the papers, and compare them with published results.

Command:   python recipes/evaluate.py mobileclip_s2 --data datasets/ --report
           python recipes/evaluate.py mobileclip_s0 mobileclip_s2=my_s2.pt open_clip:ViT-B-32/openai --suite imagenet
Try it:    python recipes/evaluate.py --tiny --report
Hardware:  a GPU for the 38 data sets with 700,000 images; any CPU for small data sets
Time:      --tiny takes half a minute on two cores. The same command resumes the run from stored embeddings
Result:    outputs/evaluate: results.jsonl with every model; with --report, also report.html and plots. The published
           means over the 38 data sets are 58.1 % for S0, 61.3 for S1, 63.7 for S2, 65.2 for B and 65.8 for B-LT
Source:    MobileCLIP (arXiv 2311.17049), table 7; DataComp (arXiv 2304.14108), section 3.5

Without --data, the recipe streams the data sets from the hub. docs/evaluation.md explains the metric of each data set,
and the handling of missing or broken data.
"""

from pathlib import Path

from mobileclip.evaluation import EvaluationSpec
from mobileclip.recipes import run_recipe

RUN: EvaluationSpec = EvaluationSpec(suite="full", output=Path("outputs") / "evaluate")

if __name__ == "__main__":
    run_recipe(RUN)

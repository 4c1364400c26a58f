"""Evaluate models on the 38 data sets of the papers, beside what is published of them.

Command:   python recipes/evaluate.py mobileclip_s2 --data datasets/ --report
           python recipes/evaluate.py mobileclip_s0 mobileclip_s2=my_s2.pt open_clip:ViT-B-32/openai --suite imagenet
Try it:    python recipes/evaluate.py --tiny --report
Hardware:  a GPU for the 38, which are 700,000 images; any CPU for small ones
Time:      --tiny takes half a minute on two cores; what was encoded once is not encoded again, and a run that was
           stopped goes on
Result:    outputs/evaluate: results.jsonl of every model, and with --report report.html and plots. As published, the
           mean of the 38 is 58.1 % for S0, 61.3 for S1, 63.7 for S2, 65.2 for B and 65.8 for B-LT
Source:    MobileCLIP (arXiv 2311.17049), table 7; DataComp (arXiv 2304.14108), section 3.5

Without --data the data sets are streamed from the hub, where they are published. docs/evaluation.md says what each of
them measures, and what is done where data are missing or broken.
"""

from pathlib import Path

from mobileclip.evaluation import EvaluationSpec
from mobileclip.recipes import run_recipe

RUN: EvaluationSpec = EvaluationSpec(suite="full", output=Path("outputs") / "evaluate")

if __name__ == "__main__":
    run_recipe(RUN)

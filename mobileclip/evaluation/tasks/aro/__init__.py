"""ARO: whether a model knows a sentence from a bag of its words.

What this benchmark alone needs belongs here: its data, its captions out of order, its scores.

Source: Yuksekgonul et al. 2023, "When and why vision-language models behave like bags-of-words, and what to do about
it?" (arXiv 2210.01936).
"""

from mobileclip.evaluation.tasks.aro.evaluate import evaluate_aro
from mobileclip.evaluation.tasks.aro.opening import open_aro, order_task
from mobileclip.evaluation.tasks.aro.perturbation import PERTURBATIONS, normalize_caption, perturb
from mobileclip.evaluation.tasks.aro.scoring import CaptionScores, order_metrics, order_outcomes, pair_metrics
from mobileclip.evaluation.tasks.aro.tagging import SpacyTagger, treebank_words
from mobileclip.evaluation.tasks.aro.tasks import PARTS, Aro, Case, OrderTask, PairTask, Part, Picture

__all__ = [
    "PARTS",
    "PERTURBATIONS",
    "Aro",
    "CaptionScores",
    "Case",
    "OrderTask",
    "PairTask",
    "Part",
    "Picture",
    "SpacyTagger",
    "evaluate_aro",
    "normalize_caption",
    "open_aro",
    "order_metrics",
    "order_outcomes",
    "order_task",
    "pair_metrics",
    "perturb",
    "treebank_words",
]

"""Metrics of embeddings, and their confidence intervals.

Only what computes with tensors and numbers belongs here: no model, no file, no data set.
"""

from mobileclip.evaluation.metrics.answers import (
    Answers as Answers,
    caption_answers as caption_answers,
    class_answers as class_answers,
)
from mobileclip.evaluation.metrics.classification import (
    ClassificationResult as ClassificationResult,
    Hits as Hits,
    classification_accuracy as classification_accuracy,
    classification_hits as classification_hits,
    ensemble_prompts as ensemble_prompts,
    fill_templates as fill_templates,
    mean_hits as mean_hits,
)
from mobileclip.evaluation.metrics.groups import (
    GroupAccuracy as GroupAccuracy,
    association_score as association_score,
    group_accuracy as group_accuracy,
    macro_f1 as macro_f1,
    macro_f1_values as macro_f1_values,
)
from mobileclip.evaluation.metrics.intervals import (
    Interval as Interval,
    PairedDifference as PairedDifference,
    mean_interval as mean_interval,
    paired_difference as paired_difference,
    proportion_interval as proportion_interval,
)
from mobileclip.evaluation.metrics.linear_probe import (
    LinearProbe as LinearProbe,
    chosen_linear_probe as chosen_linear_probe,
    fit_linear_probe as fit_linear_probe,
)
from mobileclip.evaluation.metrics.outcomes import (
    Outcomes as Outcomes,
    class_weights as class_weights,
    clustered_outcomes as clustered_outcomes,
    macro_f1_outcomes as macro_f1_outcomes,
    outcomes_of as outcomes_of,
    worst_group_outcomes as worst_group_outcomes,
)
from mobileclip.evaluation.metrics.ranking import (
    hit_probability as hit_probability,
    require_embeddings as require_embeddings,
)
from mobileclip.evaluation.metrics.retrieval import (
    Ranking as Ranking,
    Recall as Recall,
    RetrievalResult as RetrievalResult,
    caption_hits as caption_hits,
    caption_recall as caption_recall,
    rank as rank,
    rank_captions as rank_captions,
    retrieval_recall as retrieval_recall,
)
from mobileclip.evaluation.metrics.worst_group import (
    paired_worst_group as paired_worst_group,
    worst_group_interval as worst_group_interval,
)

from .classification import (
    ClassificationResult as ClassificationResult,
    Hits as Hits,
    classification_accuracy as classification_accuracy,
    classification_hits as classification_hits,
    ensemble_prompts as ensemble_prompts,
    fill_templates as fill_templates,
    mean_hits as mean_hits,
)
from .groups import (
    GroupAccuracy as GroupAccuracy,
    association_score as association_score,
    group_accuracy as group_accuracy,
    macro_f1 as macro_f1,
    macro_f1_values as macro_f1_values,
)
from .intervals import (
    Interval as Interval,
    PairedDifference as PairedDifference,
    mean_interval as mean_interval,
    paired_difference as paired_difference,
    proportion_interval as proportion_interval,
)
from .linear_probe import (
    LinearProbe as LinearProbe,
    chosen_linear_probe as chosen_linear_probe,
    fit_linear_probe as fit_linear_probe,
)
from .outcomes import (
    Outcomes as Outcomes,
    class_weights as class_weights,
    clustered_outcomes as clustered_outcomes,
    macro_f1_outcomes as macro_f1_outcomes,
    outcomes_of as outcomes_of,
    worst_group_outcomes as worst_group_outcomes,
)
from .ranking import hit_probability as hit_probability, require_embeddings as require_embeddings
from .retrieval import (
    Ranking as Ranking,
    Recall as Recall,
    RetrievalResult as RetrievalResult,
    caption_hits as caption_hits,
    caption_recall as caption_recall,
    rank as rank,
    rank_captions as rank_captions,
    retrieval_recall as retrieval_recall,
)

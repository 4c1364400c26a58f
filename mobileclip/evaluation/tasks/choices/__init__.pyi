from .aro import normalize_caption as normalize_caption
from .case import Case as Case, Picture as Picture, View as View
from .scoring import (
    PERTURBATIONS as PERTURBATIONS,
    matches as matches,
    score_groups as score_groups,
    score_orders as score_orders,
    score_pairs as score_pairs,
)
from .task import ChoiceTask as ChoiceTask

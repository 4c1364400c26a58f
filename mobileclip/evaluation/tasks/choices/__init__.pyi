from .aro import captions_of as captions_of, order_file as order_file, order_task as order_task
from .case import Case as Case, Picture as Picture, View as View
from .orders import (
    PERTURBATIONS as PERTURBATIONS,
    Captions as Captions,
    Orders as Orders,
    normalize_caption as normalize_caption,
    read_orders as read_orders,
)
from .reordering import (
    SpacyTagger as SpacyTagger,
    draw_orders as draw_orders,
    perturb as perturb,
    treebank_words as treebank_words,
    write_orders as write_orders,
)
from .scoring import (
    matches as matches,
    score_groups as score_groups,
    score_orders as score_orders,
    score_pairs as score_pairs,
)
from .task import ChoiceTask as ChoiceTask

"""Tasks that ask which of several texts or pictures is the right one.

ARO, SugarCrepe, Winoground, WinoGAViL, and long captions that are found for their pictures. How their files are read,
and what each counts, belongs here. Whatever else asks in this way becomes cases of a `ChoiceTask`, which encodes the
pictures, or parts of them, and the texts.
"""

from mobileclip.evaluation.tasks.choices.aro import captions_of as captions_of, order_file as order_file, order_task
from mobileclip.evaluation.tasks.choices.case import Case, Picture, View
from mobileclip.evaluation.tasks.choices.orders import PERTURBATIONS, Captions, Orders, normalize_caption, read_orders
from mobileclip.evaluation.tasks.choices.reordering import (
    SpacyTagger,
    draw_orders,
    perturb,
    treebank_words,
    write_orders,
)
from mobileclip.evaluation.tasks.choices.scoring import (
    matches as matches,
    score_groups as score_groups,
    score_orders as score_orders,
    score_pairs as score_pairs,
)
from mobileclip.evaluation.tasks.choices.task import ChoiceTask

__all__ = [
    "PERTURBATIONS",
    "Captions",
    "Case",
    "ChoiceTask",
    "Orders",
    "Picture",
    "SpacyTagger",
    "View",
    "draw_orders",
    "normalize_caption",
    "order_task",
    "perturb",
    "read_orders",
    "treebank_words",
    "write_orders",
]

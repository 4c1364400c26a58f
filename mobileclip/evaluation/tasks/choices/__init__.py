"""Tasks that ask which of several texts or pictures is the right one.

ARO, SugarCrepe, Winoground, WinoGAViL, and long captions that are found for their pictures. How their files are read,
and what each counts, belongs here. Whatever else asks in this way becomes cases of a `ChoiceTask`, which encodes the
pictures, or parts of them, and the texts.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

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

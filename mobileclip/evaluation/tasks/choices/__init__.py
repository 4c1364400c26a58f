"""Tasks that ask which of several texts or pictures is the right one.

ARO, SugarCrepe, Winoground, WinoGAViL, and long captions that are found for their pictures. How their files are read,
and what each counts, belongs here. Whatever else asks in this way becomes cases of a `ChoiceTask`, which encodes the
pictures, or parts of them, and the texts.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = [name for name in _names if name not in {"matches", "score_groups", "score_orders", "score_pairs"}]

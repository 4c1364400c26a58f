"""WinoGAViL: which of five to twelve images does a cue go with?

What this benchmark alone needs belongs here: its data and its score.
"""

from mobileclip.evaluation.tasks.winogavil.evaluate import evaluate_winogavil
from mobileclip.evaluation.tasks.winogavil.opening import WinoGavil, WinoGavilInstance, open_winogavil

__all__ = ["WinoGavil", "WinoGavilInstance", "evaluate_winogavil", "open_winogavil"]

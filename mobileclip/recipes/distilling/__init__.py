"""What the recipe of distilled text towers is made of: its choices, its steps, its command line, a small world.

What stores texts with a teacher's embeddings belongs in `reinforce`; the loop is that of `training`.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

__all__ = ["DistilSpec", "Kind", "TextCost", "distil", "run_recipe", "student_run", "text_cost", "text_run"]

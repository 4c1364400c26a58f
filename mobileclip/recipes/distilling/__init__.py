"""The recipe of distilled text towers: its settings, its steps, its command line, and a small world to try it in.

What stores texts with a teacher's embeddings belongs in `reinforce`; the loop is that of `training`.
"""

from mobileclip.recipes.distilling.published import text_run as text_run
from mobileclip.recipes.distilling.run import distil
from mobileclip.recipes.distilling.spec import DistilSpec, Kind
from mobileclip.recipes.distilling.teacher import OpenedTeacher as OpenedTeacher, open_teacher as open_teacher

__all__ = ["DistilSpec", "Kind", "distil", "text_run"]

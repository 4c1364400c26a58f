"""Contract suites: what every part of a kind must do, for tests of parts that are written elsewhere too.

One function a kind of part, which a test of one's own package calls. It raises an error that says what is wrong.
"""

from mobileclip.testing.blocks import check_block
from mobileclip.testing.captioners import check_captioner
from mobileclip.testing.encoder import check_encoder
from mobileclip.testing.engines import check_engine
from mobileclip.testing.losses import check_loss
from mobileclip.testing.sources import check_source
from mobileclip.testing.specs import check_spec
from mobileclip.testing.stores import check_store
from mobileclip.testing.targets import check_target
from mobileclip.testing.tasks import check_task
from mobileclip.testing.teachers import check_teacher

__all__ = [
    "check_block",
    "check_captioner",
    "check_encoder",
    "check_engine",
    "check_loss",
    "check_source",
    "check_spec",
    "check_store",
    "check_target",
    "check_task",
    "check_teacher",
]

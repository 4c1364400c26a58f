"""Contract suites: what every part of a kind must do, for tests of parts that are written elsewhere too.

One function a kind of part, which a test of one's own package calls. It raises an error that says what is wrong.
"""

import lazy_loader

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

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

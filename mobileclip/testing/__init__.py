"""Contract suites for authors of parts: what a part of one's own has to do to have the standing of ours.

One function a kind of part, which a test of one's own package calls. It raises a ValueError that says what is wrong.
"""

from mobileclip.testing.encoder import check_encoder

__all__ = ["check_encoder"]

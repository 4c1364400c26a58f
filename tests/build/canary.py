"""Code whose running is noticed."""

import sys

CANARY_EVENT = "mobileclip.canary"
CANARY = f"__import__('sys').audit({CANARY_EVENT!r})"
"""Python that shows that it was run."""


class PickledCanary:
    """An object whose pickle, when it is read, shows that it was run."""

    def __reduce__(self):
        return sys.audit, (CANARY_EVENT,)

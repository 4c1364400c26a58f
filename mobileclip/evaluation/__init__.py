"""Evaluates models: zero-shot classification, retrieval, probes and choices, with intervals and reports.

What asks a model, measures its answers or shows the results belongs here, in the package of its step. What trains or
exports a model does not.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = list(_names)

"""Evaluates models: zero-shot classification, retrieval, probes and choices, with intervals and reports.

Code that runs a model on a task, scores the answers or reports the results belongs in this package. Code that trains or
exports a model does not.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = list(_names)

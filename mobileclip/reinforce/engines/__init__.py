"""Engines: how the units of a reinforcement are spread over processes and machines. None changes what is stored.

A new way to spread work enters here.
"""

from mobileclip.reinforce.engines.base import Engine
from mobileclip.reinforce.engines.inline import InlineEngine
from mobileclip.reinforce.engines.local import LocalEngine
from mobileclip.reinforce.engines.ray import RayEngine

__all__ = ["Engine", "InlineEngine", "LocalEngine", "RayEngine"]

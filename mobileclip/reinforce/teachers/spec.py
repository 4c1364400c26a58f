"""The base class and the registry of teacher specs; add a teacher here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import attrs

from mobileclip.registry import Registry
from mobileclip.reinforce.teachers.ensemble import TeacherEnsemble
from mobileclip.reinforce.teachers.protocol import Teacher
from mobileclip.serialization import open_family


@attrs.frozen(kw_only=True)
class TeacherSpec(ABC):
    """Base class of teacher specs; register your own in `teachers` or by the entry point `mobileclip.teacher`.

    Examples:
        >>> from mobileclip.serialization import from_json, to_json
        >>> teacher = OpenClipTeacher(model="ViT-L-14", pretrained="openai")
        >>> from_json(to_json(teacher, unstructure_as=TeacherSpec), TeacherSpec) == teacher
        True
    """

    @abstractmethod
    def build(self, device: str = "cpu") -> Teacher:
        """Return the teacher, its weights loaded.

        Args:
            device: where it computes, such as `cuda:1`; embeddings are returned on the CPU.

        Raises:
            ValueError: if there are no such weights, or they cannot be used.
        """


teachers: Registry[type[TeacherSpec]] = Registry("teacher")
"""Spec classes of teachers, by name; add your own here, or by an entry point in `mobileclip.teacher`."""

open_family(TeacherSpec, teachers)


def build_ensemble(specs: Sequence[TeacherSpec], device: str = "cpu") -> TeacherEnsemble:
    """Return the teachers as one, in this order.

    Args:
        specs: at least one; the teachers' names differ.
        device: where they compute.

    Raises:
        ValueError: if there is none, two are the same, or one cannot be built.
    """
    return TeacherEnsemble([spec.build(device) for spec in specs])

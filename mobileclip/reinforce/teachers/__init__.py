"""Teachers: image-text models whose embeddings are stored, and ensembles of them.

A new kind of teacher enters here, registered by name. What is stored of its embeddings is for `reinforce` and `data`.
"""

from mobileclip.reinforce.teachers.checkpoint import CheckpointTeacher
from mobileclip.reinforce.teachers.ensemble import NotFiniteError, TeacherEnsemble
from mobileclip.reinforce.teachers.model import ModelTeacher
from mobileclip.reinforce.teachers.open_clip import OpenClipTeacher
from mobileclip.reinforce.teachers.protocol import Teacher, TextTeacher
from mobileclip.reinforce.teachers.spec import TeacherSpec, build_ensemble, teachers
from mobileclip.reinforce.teachers.transformers import TransformersTeacher

__all__ = [
    "CheckpointTeacher",
    "ModelTeacher",
    "NotFiniteError",
    "OpenClipTeacher",
    "Teacher",
    "TeacherEnsemble",
    "TeacherSpec",
    "TextTeacher",
    "TransformersTeacher",
    "build_ensemble",
    "teachers",
]

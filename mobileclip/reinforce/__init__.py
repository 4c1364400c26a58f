"""Reinforcement of data sets: computes and stores captions and teacher embeddings once for each image.

This subpackage computes, stores and checks reinforced data; `mobileclip.data` reads the data.
"""

from mobileclip.reinforce.captioners import (
    Captioner,
    CaptionerSpec,
    CaptionSet,
    CheckpointCaptioner,
    CocaCaptioner,
    SeveralCaptioners,
)
from mobileclip.reinforce.encoding import OnlineTeachers, measure_agreement
from mobileclip.reinforce.estimation import Estimate, estimate
from mobileclip.reinforce.image_text_to_text import ImageTextToTextCaptioner
from mobileclip.reinforce.job import ReinforcementReport, reinforce
from mobileclip.reinforce.manifest import Manifest, ShardEntry
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import (
    CheckpointTeacher,
    ModelTeacher,
    OpenClipTeacher,
    Teacher,
    TeacherEnsemble,
    TeacherSpec,
    TextTeacher,
    TransformersTeacher,
    build_ensemble,
)
from mobileclip.reinforce.texts import reinforce_texts
from mobileclip.reinforce.verification import Verification, verify

__all__ = [
    "CaptionSet",
    "Captioner",
    "CaptionerSpec",
    "CheckpointCaptioner",
    "CheckpointTeacher",
    "CocaCaptioner",
    "Estimate",
    "ImageTextToTextCaptioner",
    "Manifest",
    "ModelTeacher",
    "OnlineTeachers",
    "OpenClipTeacher",
    "ReinforcementReport",
    "ReinforcementSpec",
    "SeveralCaptioners",
    "ShardEntry",
    "Teacher",
    "TeacherEnsemble",
    "TeacherSpec",
    "TextTeacher",
    "TransformersTeacher",
    "Verification",
    "build_ensemble",
    "estimate",
    "measure_agreement",
    "reinforce",
    "reinforce_texts",
    "verify",
]

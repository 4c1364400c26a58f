"""Reinforcement: what teachers say about every image and caption, computed once and stored beside them."""

from mobileclip.reinforce.card import ReinforcementCard, ShardEntry, TeacherEntry, read_card
from mobileclip.reinforce.encoding import Captions, CaptionSource, own_captions
from mobileclip.reinforce.job import ReinforcementReport, reinforce
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import ModelTeacher, Teacher, TeacherEnsemble, normalize_pixels

__all__ = [
    "CaptionSource",
    "Captions",
    "ModelTeacher",
    "ReinforcementCard",
    "ReinforcementReport",
    "ReinforcementSpec",
    "ShardEntry",
    "Teacher",
    "TeacherEnsemble",
    "TeacherEntry",
    "normalize_pixels",
    "own_captions",
    "read_card",
    "reinforce",
]

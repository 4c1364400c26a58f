from .captioners import (
    Captioner as Captioner,
    CaptionerSpec as CaptionerSpec,
    CaptionSet as CaptionSet,
    CheckpointCaptioner as CheckpointCaptioner,
    CocaCaptioner as CocaCaptioner,
    SeveralCaptioners as SeveralCaptioners,
)
from .encoding import (
    OnlineTeachers as OnlineTeachers,
    measure_agreement as measure_agreement,
)
from .estimation import (
    Estimate as Estimate,
    estimate as estimate,
)
from .image_text_to_text import ImageTextToTextCaptioner as ImageTextToTextCaptioner
from .job import (
    ReinforcementReport as ReinforcementReport,
    reinforce as reinforce,
)
from .manifest import (
    Manifest as Manifest,
    ShardEntry as ShardEntry,
)
from .spec import ReinforcementSpec as ReinforcementSpec
from .teachers import (
    CheckpointTeacher as CheckpointTeacher,
    ModelTeacher as ModelTeacher,
    OpenClipTeacher as OpenClipTeacher,
    Teacher as Teacher,
    TeacherEnsemble as TeacherEnsemble,
    TeacherSpec as TeacherSpec,
    TextTeacher as TextTeacher,
    TransformersTeacher as TransformersTeacher,
    build_ensemble as build_ensemble,
)
from .texts import reinforce_texts as reinforce_texts
from .verification import (
    Verification as Verification,
    verify as verify,
)

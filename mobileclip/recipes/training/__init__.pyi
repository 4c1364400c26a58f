from .command import (
    run_recipe as run_recipe,
)
from .linked_defaults import (
    Given as Given,
    following_training as following_training,
)
from .memory import (
    step_memory as step_memory,
)
from .published import (
    as_released as as_released,
    as_released_b as as_released_b,
    as_released_dfndr2b as as_released_dfndr2b,
    long_training as long_training,
    mobileclip2_run as mobileclip2_run,
    mobileclip_run as mobileclip_run,
    titled as titled,
    vit_b16_12m_run as vit_b16_12m_run,
    with_data as with_data,
    with_drop_path as with_drop_path,
    with_loss as with_loss,
    with_one_teacher as with_one_teacher,
    with_scales as with_scales,
)
from .tiny import (
    shallow as shallow,
    tiny_run as tiny_run,
)
from .validation import (
    measured_on as measured_on,
)

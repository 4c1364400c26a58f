from .files import (
    KINDS as KINDS,
    copy_recipe as copy_recipe,
    find_recipe as find_recipe,
    header_of as header_of,
    read_header as read_header,
    recipe_files as recipe_files,
    run_file as run_file,
)
from .flags import (
    described as described,
    parsed_as as parsed_as,
    read_choices as read_choices,
    reported as reported,
    run_recipe as run_recipe,
    started as started,
)
from .published import (
    as_released as as_released,
    as_released_b as as_released_b,
    as_released_dfndr2b as as_released_dfndr2b,
    coca_run as coca_run,
    coca_vit_l14 as coca_vit_l14,
    datacompdr_reinforcement as datacompdr_reinforcement,
    finetuning_run as finetuning_run,
    imagenet_run as imagenet_run,
    long_training as long_training,
    mobileclip2_run as mobileclip2_run,
    mobileclip_run as mobileclip_run,
    vit_b16_12m_run as vit_b16_12m_run,
    with_data as with_data,
    with_drop_path as with_drop_path,
    with_loss as with_loss,
    with_one_teacher as with_one_teacher,
    with_scales as with_scales,
)
from .short import LINES as LINES, shorts as shorts
from .validation import captions_on as captions_on, held_out_pairs as held_out_pairs, validation_hook as validation_hook

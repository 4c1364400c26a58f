from .entry_point import described as described, reported as reported, written_run as written_run
from .files import (
    KINDS as KINDS,
    copy_recipe as copy_recipe,
    find_recipe as find_recipe,
    header_of as header_of,
    recipe_files as recipe_files,
    run_file as run_file,
)
from .flags import FLAGS as FLAGS, RENAMED as RENAMED, canonical as canonical
from .header import read_header as read_header

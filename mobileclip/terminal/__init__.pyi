from .common import Common as Common, common_flags as common_flags, use_common as use_common
from .flags import named as named, told as told, told_of_specs as told_of_specs
from .help import (
    PROGRAMS as PROGRAMS,
    command_lines as command_lines,
    describe as describe,
    laid_out as laid_out,
    paragraphs as paragraphs,
    parse as parse,
)
from .pictures import can_show_pictures as can_show_pictures, show_pictures as show_pictures
from .printing import (
    console as console,
    get_logger as get_logger,
    has_reader as has_reader,
    print_table as print_table,
    say as say,
    say_json as say_json,
    shown as shown,
)
from .several import in_order as in_order
from .status import conclude as conclude
from .streams import ensure_streams as ensure_streams, give_up_output as give_up_output

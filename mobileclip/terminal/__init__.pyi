from .common import Common as Common, Rare as Rare, common_flags as common_flags, use_common as use_common
from .flags import FlagRules as FlagRules, flags_of as flags_of, parse as parse
from .help import (
    PROGRAMS as PROGRAMS,
    command_lines as command_lines,
    format_help as format_help,
    paragraphs as paragraphs,
)
from .images import can_show_images as can_show_images, show_images as show_images
from .printing import (
    console as console,
    get_logger as get_logger,
    has_reader as has_reader,
    print_table as print_table,
    say as say,
    say_json as say_json,
    shown as shown,
)
from .status import conclude as conclude
from .streams import discard_output as discard_output, ensure_streams as ensure_streams

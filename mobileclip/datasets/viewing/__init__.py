"""Shows what is in a data set: numbers of samples, and single ones as text and as a contact sheet.

What shows data belongs here; nothing here changes them.
"""

from mobileclip.datasets.viewing.canvas import (
    ALARM as ALARM,
    BAR as BAR,
    COLUMNS as COLUMNS,
    FAINT as FAINT,
    INK as INK,
    INNER as INNER,
    MARGIN as MARGIN,
    PAPER as PAPER,
    RULE as RULE,
    TILE as TILE,
    Sheet as Sheet,
    Tile as Tile,
    legible as legible,
    load_shown as load_shown,
    wrap as wrap,
)
from mobileclip.datasets.viewing.contact_sheet import draw_sheet as draw_sheet
from mobileclip.datasets.viewing.counting import count_shards as count_shards
from mobileclip.datasets.viewing.inspection import (
    describe_crop as describe_crop,
    describe_operations as describe_operations,
    inspect_sample as inspect_sample,
    print_inspection as print_inspection,
)

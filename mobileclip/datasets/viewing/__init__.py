"""Shows what is in a data set: numbers of samples, and single ones as text and as a page.

What shows data belongs here; nothing here changes them.
"""

from mobileclip.datasets.viewing.counting import count_shards as count_shards
from mobileclip.datasets.viewing.inspection import (
    describe_crop as describe_crop,
    describe_operations as describe_operations,
    inspect_sample as inspect_sample,
    print_inspection as print_inspection,
    write_inspection as write_inspection,
)
from mobileclip.datasets.viewing.page import (
    PAPER as PAPER,
    SIDE as SIDE,
    Section as Section,
    Thumbnail as Thumbnail,
    load_shown as load_shown,
    write_pictures as write_pictures,
)

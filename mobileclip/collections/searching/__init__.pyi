from .duplicates import (
    THRESHOLD as THRESHOLD,
    DuplicateGroup as DuplicateGroup,
    Duplicates as Duplicates,
    find_duplicates as find_duplicates,
    require_threshold as require_threshold,
)
from .explaining import explained as explained
from .filtering import (
    Condition as Condition,
    is_condition as is_condition,
    matching as matching,
    parse_condition as parse_condition,
)
from .learned import Cache as Cache, examples_help as examples_help, named_concepts as named_concepts
from .matches import Match as Match, clock as clock, match_of as match_of
from .neighbours import (
    GRAPHS as GRAPHS,
    GraphSizes as GraphSizes,
    NeighbourGraphs as NeighbourGraphs,
    nearest_of as nearest_of,
    open_graphs as open_graphs,
    remove_graphs as remove_graphs,
    renew_graphs as renew_graphs,
)
from .pictures import (
    make_small as make_small,
    make_small_frame as make_small_frame,
    read_encoded as read_encoded,
    small_pictures as small_pictures,
    webp as webp,
)
from .queries import (
    Picture as Picture,
    direction_of as direction_of,
    nearest_matches as nearest_matches,
)

from .operation import pair_terms as pair_terms, tiled_terms as tiled_terms
from .tiles import Similarity as Similarity, Tiling as Tiling

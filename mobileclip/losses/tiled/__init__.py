"""The reinforced loss in tiles: the same values and gradients in memory linear in the batch.

What saves memory and time belongs here; what is computed is said in `losses.reinforced`.
"""

from mobileclip.losses.tiled.operation import pair_terms as pair_terms, tiled_terms as tiled_terms
from mobileclip.losses.tiled.tiles import Similarity as Similarity, Tiling as Tiling

"""The sizes of tiles that the tests go through."""

from __future__ import annotations

import pytest

from mobileclip.losses.tiled import tiles

# Bytes that make tiles of 4 x 4, 3 x 3 and one float64; and the library's own, in which small batches are one tile.
TILE_BYTES = [8 * 16, 8 * 9, 8, tiles.TILE_BYTES]


@pytest.fixture(params=TILE_BYTES, ids=lambda size: f"{size}bytes")
def each_size(request, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", request.param)

"""The backends and the sizes of tiles that the tests go through."""

import pytest

from mobileclip.losses import reinforced, tiled as tiles

# Bytes that make tiles of 4 x 4, 3 x 3 and one float64; and the library's own, in which small batches are one tile.
TILE_BYTES = [8 * 16, 8 * 9, 8, tiles.TILE_BYTES]


@pytest.fixture
def tiled(monkeypatch):
    """Small batches are computed by the tiles too, where nothing else is asked for."""
    monkeypatch.setattr(reinforced, "MOST_DENSE_PAIRS", 0)


@pytest.fixture(params=["dense", "tiled"])
def each_backend(request):
    """Small batches are computed by either, where nothing else is asked for."""
    if request.param == "tiled":
        request.getfixturevalue("tiled")


@pytest.fixture(params=TILE_BYTES, ids=lambda size: f"{size}bytes")
def each_size(request, monkeypatch, tiled):
    monkeypatch.setattr(tiles, "TILE_BYTES", request.param)

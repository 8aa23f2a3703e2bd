"""Frames on the canvas, and tokens pooled from exactly the pixels that the semantic tokens cover."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.world_simulator import canvas as wan_canvas


def test_a_square_frame_on_the_published_canvas_lies_on_tokens_11_to_40():
    spot = wan_canvas.place((256, 256), (480, 832), "registered")
    assert (spot.top, spot.left, spot.height, spot.width) == (0, 176, 480, 480)
    weights = wan_canvas.coverage(52, spot.left / 16, (spot.left + spot.width) / 16, 16)
    used = torch.nonzero(weights.sum(0)).flatten()
    assert used.min() == 11 and used.max() == 40


@given(
    st.tuples(st.integers(40, 400), st.integers(40, 400)),
    st.tuples(st.integers(4, 30), st.integers(4, 52)),
    st.tuples(st.integers(1, 16), st.integers(1, 16)),
)
def test_registered_tokens_tell_where_their_pixels_are(frame, tokens, grid):
    """Tokens that hold their own position in the frame are pooled to the centres of the semantic cells."""
    px = 16
    canvas = (tokens[0] * px, tokens[1] * px)
    spot = wan_canvas.place(frame, canvas, "registered")
    assert spot.top >= 0 and spot.top + spot.height <= canvas[0] and spot.left >= 0
    rows = ((torch.arange(tokens[0]) + 0.5) * px - spot.top) / spot.height
    columns = ((torch.arange(tokens[1]) + 0.5) * px - spot.left) / spot.width
    field = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)[None, None]
    pooled = wan_canvas.pool_registered(field, spot, px, grid, (0, 0, 1, 1)).reshape(*grid, 2)
    centres = [(torch.arange(n) + 0.5) / n for n in grid]
    expected = torch.stack(torch.meshgrid(*centres, indexing="ij"), -1)
    # A cell's own tokens reach at most one token beyond it; weights by area make it less than half of one.
    for axis, size in enumerate((spot.height, spot.width)):
        assert (pooled - expected)[..., axis].abs().max() <= 0.5 * px / size + 1e-4


def test_a_view_pools_the_part_under_the_semantic_tokens():
    spot = wan_canvas.place((64, 64), (64, 64), "registered")
    field = torch.arange(16.0).reshape(1, 1, 4, 4, 1)
    pooled = wan_canvas.pool_registered(field, spot, 16, (1, 1), (0.5, 0.5, 1.0, 1.0))
    assert pooled.item() == pytest.approx(np.mean([10, 11, 14, 15]))


def test_letterbox_keeps_the_picture_and_blackens_the_rest():
    video = wan_canvas.draw(
        torch.full((1, 1, 64, 64, 3), 255, dtype=torch.uint8), (64, 96), "registered", torch.float32
    )
    assert (video[..., 16:80] == 1).all() and (video[..., :16] == -1).all() and (video[..., 80:] == -1).all()

"""What /diagnostics says of latencies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vega3d_ros.ros.diagnostics import Latencies


@given(values=st.lists(st.floats(0.0, 1e4), min_size=1, max_size=60))
def test_percentiles_are_numpys_over_the_last_of_the_window(values: list[float]) -> None:
    latencies = Latencies(window=40)
    for value in values:
        latencies.add("policy", value)
    said = latencies.values()
    expected = np.percentile(values[-40:], [50.0, 95.0, 99.0])
    assert [float(str(said[f"policy_ms_p{p}"])) for p in (50, 95, 99)] == pytest.approx(expected, abs=6e-4)
    assert said["policy_count"] == min(40, len(values))

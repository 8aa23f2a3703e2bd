"""The Rerun layout of a recording: `python config/rerun/blueprint.py vega3d.rbl`, then `rerun BAG.mcap vega3d.rbl`.

Needs rerun-sdk, whose viewer reads .mcap files of ROS 2 as they are; this package does not need it.  Layouts belong to
a version of the viewer, so it is made by the one that shows it.
"""

from __future__ import annotations

import sys

import rerun.blueprint as rrb

LAYOUT = rrb.Blueprint(
    rrb.Vertical(
        rrb.Horizontal(
            rrb.Spatial2DView(name="agentview", origin="/agentview/image_raw"),
            rrb.Spatial2DView(name="wrist", origin="/wrist/image_raw"),
        ),
        rrb.Horizontal(
            rrb.TimeSeriesView(name="joint states", origin="/joint_states"),
            rrb.DataframeView(name="commands", origin="/panda_arm_controller/joint_trajectory"),
        ),
        rrb.TextLogView(name="log", origin="/rosout"),
        row_shares=[3, 2, 1],
    ),
    collapse_panels=True,
)

if __name__ == "__main__":
    LAYOUT.save("vega3d", sys.argv[1])

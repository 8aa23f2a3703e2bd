"""Which processes are started together, and whether the robot is ready for them.

Imports `vega3d_ros.ros` and what is below it, never `vega3d_ros.topics`. Begin with `bringup.py`, the table of nodes
that the launch file and `vega3d-bringup` share.
"""

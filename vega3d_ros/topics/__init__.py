"""What comes into policy_node and what leaves it: cameras and joint states, joint commands by topic or action.

Imports `vega3d_ros.ros` and what is below it. Begin with `inputs.py` and `command_writers.py`.
"""

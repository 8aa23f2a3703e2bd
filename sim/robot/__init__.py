"""The simulator as a ROS 2 robot, and episodes over ROS.

Imports `sim.results` and `sim.worlds`, never `sim.demonstrations`. Begin with `sim_node.py`.
"""

from vega3d_ros.ros.dds import require_middleware

require_middleware()

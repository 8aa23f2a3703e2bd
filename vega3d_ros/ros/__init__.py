"""rclpy's plumbing: messages to arrays and back, parameters, DDS profiles, lifecycle, signals, services.

Imports `vega3d_ros.inference` and what is below it. Begin with `conversions.py` and `node_parameters.py`.
"""

from vega3d_ros.ros.dds import require_middleware

require_middleware()

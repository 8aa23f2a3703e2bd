"""The robot side: ROS 2 nodes and the NumPy stages between cameras and joint commands."""

__version__ = "0.1.0"

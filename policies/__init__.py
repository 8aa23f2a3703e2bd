"""The model side of vega3d_ros: knows torch, never ROS and never a simulator."""

"""A driver for an arm without ros2_control: Franka's own interface behind the topics of a joint_trajectory_controller.

Imports `vega3d_ros.ros` and what is below it. Begin with `franka_driver.py`.
"""

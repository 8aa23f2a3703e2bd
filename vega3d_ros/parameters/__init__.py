"""What a robot's file may say: every parameter with its kind and range, read strictly, checked together.

Imports `vega3d_ros.control`, never rclpy, so that a file is judged before anything starts. Begin with `table.py`.
"""

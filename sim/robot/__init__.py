"""The simulator as a ROS 2 robot, and episodes over ROS.

Imports `sim.results` and `sim.worlds`, never `sim.demonstrations`. Begin with `sim_node.py`.
"""

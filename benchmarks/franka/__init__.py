"""franka_driver and policy_node against franka-sim, a robot that others wrote, in a network of its own.

Begin with `row.py`.
"""

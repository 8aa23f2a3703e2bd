"""Recording what policy_node saw, decided and sent, and deciding it again from the bag.

The topmost room of `vega3d_ros`. Begin with `recording_node.py` and `replay.py`.
"""

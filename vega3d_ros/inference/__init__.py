"""How the policy is run: in a process of its own, in lockstep with a simulator or in real time.

Imports `vega3d_ros.control`. Begin with `realtime.py`.
"""

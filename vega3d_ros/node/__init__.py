"""policy_node, the lifecycle node: wiring, report and supervision.

Imports `vega3d_ros.topics` and what is below it. Begin with `policy_node.py`.
"""

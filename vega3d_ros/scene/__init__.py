"""scene_node, the lifecycle node that answers questions about what the cameras see; it commands nothing.

Imports `vega3d_ros.topics` and what is below it. Begin with `scene_node.py`.
"""

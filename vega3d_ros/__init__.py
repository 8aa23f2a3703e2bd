"""The robot side: ROS 2 nodes and the NumPy stages between cameras and joint commands.

Begin with `control/` for how a command is decided, `node/policy_node.py` for the node that does it.
Of `policies` it imports types and checkpoints only, of torch and simulators nothing.
"""

from policies.interrupts import quiet_while_imported

quiet_while_imported()

__version__ = "0.1.0"

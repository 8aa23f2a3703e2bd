"""Vision-language-action policies: from an observation to a chunk of actions.

Begin with `types.py` (what a policy takes and gives) and `checkpoints.py` (`load_policy`, the one way to get one).
Imports torch, diffusers and transformers; never ROS, a simulator, `vega3d_ros` or `sim`.
"""

from policies.interrupts import quiet_while_imported

quiet_while_imported()

"""`libero_space`: scenes of LIBERO and robosuite filmed by moving cameras, and questions about them with true answers.

Imports `sim.worlds` and `sim.results`.  Begin with `filming.py`; `collect.py` is the command, and `truth/` defines what
is true and what is asked.
"""

import os

# Before any file of this room imports MuJoCo, which then decides what it draws with; as in sim/worlds/libero_env.py.
os.environ.setdefault("MUJOCO_GL", "egl")

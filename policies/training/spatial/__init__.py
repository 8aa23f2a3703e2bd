"""What vega-nano-spatial learns from: films of libero_space, and what the simulator knows of them.

Imports `policies.spatial.nano`.  Begin with `films.py`; `policies.training.train_spatial` is the command.
"""

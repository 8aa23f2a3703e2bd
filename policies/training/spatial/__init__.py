"""Training of vega-nano-spatial: films of libero_space, what the simulator knows of them, the loss, the steps.

Imports the rooms of `policies` below `training`. Begin with `films.py`; `train_spatial.py` is the command.
"""

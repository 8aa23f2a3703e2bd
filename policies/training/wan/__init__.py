"""Training of a small world simulator: clips of demonstrations, networks, losses, stages, what they are worth.

Imports the rooms of `policies` below `training`. Begin with `networks.py`; `train_world_simulator.py` is the command.
"""

"""Training of the full-size policy: demonstrations, the image path, cached tokens, what learns, what comes out.

Imports the rooms of `policies` below `training`. Begin with `learner.py`; `train_vega.py` is the command.
"""

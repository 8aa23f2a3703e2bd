"""Training of vega-nano and of its world simulator, from LeRobot v3 datasets.

The topmost room of `policies`: imports all others, is imported by none. Begin with `train_nano.py`.
"""

"""Training of vega-nano and of its world simulator, from demonstrations made here.

The topmost room of `policies`: imports all others, is imported by none. Begin with `train_nano.py`.
"""

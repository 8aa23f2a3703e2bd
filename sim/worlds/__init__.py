"""LIBERO and robosuite behind one protocol, and how their arms are commanded.

The lowest room of `sim`. Begin with `environment.py` (the protocol) and `libero_env.py`.
"""

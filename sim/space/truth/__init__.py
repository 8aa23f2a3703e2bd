"""What is true of a filmed scene, and what is asked about it; NumPy and SciPy only.

Imports nothing of ours but `sim.space.assets` for plurals.  Begin with `facts.py`.
"""

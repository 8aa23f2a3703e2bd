"""`libero_space`: scenes of LIBERO and robosuite filmed by moving cameras, and questions about them with true answers.

Imports `sim.worlds` and `sim.results`.  Begin with `collect.py`, the command; `shapes.py`, `directions.py` and
`questions.py` are NumPy only and define what is true.
"""

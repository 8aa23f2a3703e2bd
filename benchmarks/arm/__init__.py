"""Rows of `python -m benchmarks.control`: policy_node in front of a stand-in arm, and the guard and scheduler alone.

Imports `benchmarks.rows` and the package. Begin with `stand_in.py` (the arm) and `fault_matrix.py`.
"""

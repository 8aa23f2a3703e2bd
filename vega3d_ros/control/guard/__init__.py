"""What may leave and what may be believed: the commanded path, its limits, and whether joint states are possible.

Imports NumPy and `policies.types` alone; the arm's model comes in as a protocol. Begin with `safety_guard.py`.
"""

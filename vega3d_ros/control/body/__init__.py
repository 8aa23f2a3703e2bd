"""Where the arm's links are, and how near to each other and to what stands around: capsules, distances, slowing down.

Imports Pinocchio with its collision library coal, NumPy, and `policies.types`. Begin with `body.py`.
"""

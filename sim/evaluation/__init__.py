"""Who runs which episode where: one process, workers, Ray, a shared or a remote policy.

Imports all other rooms of `sim`. Begin with `evaluate.py`.
"""

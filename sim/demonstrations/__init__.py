"""Experts that see the simulator's state, and the demonstrations they give.

Imports `sim.results` and `sim.worlds`, never `sim.robot`. Begin with `collect_skills.py`.
"""

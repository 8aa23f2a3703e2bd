"""What happens within one control step of a simulated arm: its controllers, and the physics steps between them.

Imports nothing of `sim`.  Begin with `control_step.py`.
"""

"""What this package computes against golden vectors of reference implementations; `python -m policies.check_parity`.

Imports the policies' rooms and what is below them. Begin with `golden.py`; each other file compares one thing.
"""

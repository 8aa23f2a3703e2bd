"""Do an encoder's tokens say the same of a place from two sides?  The paper's score, and controls beside it.

Imports policies and what is below them.  Begin with `score.py`; `python -m policies.correspondence --help` runs it.
"""

"""Numbers with thresholds: one command per subject at the top; `rows.py` is how they print.

`arm/` holds how policy_node and the guard are tried. May import everything; nothing but tests imports it.
"""

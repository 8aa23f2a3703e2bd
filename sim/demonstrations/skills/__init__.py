"""Skills on privileged simulator state, composed from the goal predicates of a bddl file.

Imports `sim.worlds`; imported by `sim.demonstrations`. Begin with `expert.py`, then `transfer.py` (pick and place),
`joints.py` (drawers, doors, knobs) and `insert.py` (what goes behind a door); `scene.py` is what they see, `motion.py`
how they move.
"""

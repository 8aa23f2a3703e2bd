"""vega-nano-spatial: a small model that finds named things in a film, in metres, and answers about them.

Imports `policies.nano`'s layers and what is below them.  Begin with `network.py` (a frame), then `scene_map.py` (all
frames together), `questions.py` (what is asked) and `model.py`, which puts them together.
"""

"""What remains of an evaluation: summaries, pages, charts, videos, datasets.

Imports `sim.worlds`. Begin with `evaluation.py`.
"""

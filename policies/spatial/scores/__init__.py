"""How answers are scored: VSI-Bench, boxes, short answers, captions; as the reference does, with its quirks named.

NumPy, SciPy and a kept package for captions; imports nothing of ours but `policies.types`.
"""

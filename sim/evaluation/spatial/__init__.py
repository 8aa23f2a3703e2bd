"""Questions about scenes put to a model: which benchmarks there are, where their data lie, and who is asked.

Begin with `benchmarks.py`; `sim/run_spatial.py` is the command.
"""

"""What `python -m policies.benchmark` measures: models of published shape, and the meters.

Imports both policies and what is below them. Begin with `benchmark_models.py`.
"""

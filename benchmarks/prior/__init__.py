"""What a study's arms solve, and what follows for the prior. Begin with `__main__.py`."""

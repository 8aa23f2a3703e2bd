"""The arms of an experiment on what the generative tokens are worth, trained at equal budget.

Imports `policies.training.train_nano` and what is below it. Begin with `__main__.py`, the command.
"""

"""How vega-nano learns: what it starts from and is shown, and besides acting where things are and what sentences mean.

Imports `policies.nano` and `policies.training.dataset`.  Begin with `learner.py`; `policies.training.train_nano` is the
command.
"""

"""What a run of questions about scenes leaves: answers and their scores, blind baselines, the page.

Imports `policies.spatial.scores`, never a model.  Begin with `items.py`.
"""

"""The simulator against another build of it: `__main__.py` takes turns, `worker.py` is one build's part."""

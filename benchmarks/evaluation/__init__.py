"""The evaluation harness in numbers: `__main__.py` measures; `ray_cluster.py`: two nodes on this machine."""

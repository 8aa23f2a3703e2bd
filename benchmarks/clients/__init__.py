"""Others' own clients, servers and viewers in front of what this package writes and speaks.

Begin with `__main__.py` (`python -m benchmarks.clients`).  Each runs in a throwaway environment with pinned versions,
as a program of `programs.py`; nothing of them is imported here.
"""

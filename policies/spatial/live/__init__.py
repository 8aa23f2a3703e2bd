"""A scene while it is seen: frames that come one by one, the newest of them kept, and questions about them.

Imports `policies.spatial`. Begin with `memory.py`.
"""

"""LIBERO-plus: which of its tasks can be built from the installed assets, their cameras, and their sensor noise.

Imports nothing of ours but `policies.types`. Begin with `libero_plus.py`.
"""

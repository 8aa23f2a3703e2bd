"""The gate that fuses semantic with generative tokens, and which camera token meets which world token.

Imports `policies.world_simulator` and what is below it. Begin with `gated_fusion.py`.
"""

"""What both policies are made on: from observations to chunks, and the gate that fuses semantic with generative tokens.

Imports `policies.world_simulator` and what is below it. Begin with `fused_policy.py`.
"""

"""Questions about a scene: Qwen2.5-VL whose visual tokens are fused with the world simulator's, and 3D grounding.

Imports `policies.fusion` and what is below it; of the policies only `nano/`, the small model, takes layers of
`policies.nano`. Begin with `reasoner.py`; `scores/` is how answers are counted, `parity.py` what the reference
computed.
"""

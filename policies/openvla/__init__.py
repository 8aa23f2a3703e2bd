"""OpenVLA-OFT as published, and VEGA-3D composed from it and a published Wan.

Imports `policies.fusion` and what is below it, never `policies.nano`. Begin with `policy.py` for the whole,
`model.py` for OpenVLA-OFT alone.
"""

"""vega-nano: the small policy that ships with this package and runs on two CPU cores.

Imports `policies.fusion` and what is below it, never `policies.openvla`. Begin with `policy.py`.
"""

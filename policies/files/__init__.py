"""Reading and writing: weights, JSON configurations, and what all command lines share.

Imports nothing of ours but `policies.types`. Begin with `weight_files.py`: what is
read passes through `tensor_sources`, `tensor_names`, `quantised` and `adapters`, in this order.
"""

"""The latent world simulator: frames > canvas > VAE > noise > Wan's transformer, up to the tapped block > tokens.

Imports `policies.files`. Begin with `simulator.py`; `stream.py` is the same chain for frames that come one by one.
"""

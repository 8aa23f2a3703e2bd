"""A policy for others, over WebSocket, and the messages that both ends speak.

Begin with `serve.py` (`vega3d-serve`).  `libero.py` says what a request means; `openpi.py` and `vla_eval.py` are the
two protocols; `server.py` listens and decides.  Imports the rest of `policies`; nothing of a simulator or of ROS.
"""

"""What an arm's controller is asked to do, judged by someone who knows nothing of how it was decided.

Imports NumPy, and in `process.py` rclpy; nothing of this repository.  Begin with `controller.py`.
"""

"""What an arm's controller is asked to do, judged by someone who knows nothing of how it was decided.

Imports NumPy, and in `driver.py` rclpy; nothing else of this repository.  Begin with `controller.py`.
"""

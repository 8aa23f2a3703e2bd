"""From observations to safe joint commands, in NumPy alone: buffer, scheduler, control law, kinematics, guard.

The lowest room: imports `policies.types`, never rclpy or a message package. Begin with `control_loop.py`.
"""

"""The simulated robot, and the evaluations that run on it."""

"""Robots that the control loop drives: simulated ones, Gymnasium environments, and drivers of real hardware."""

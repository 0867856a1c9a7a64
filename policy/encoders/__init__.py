"""Observation encoders: from a dictionary of observation histories to a condition vector."""

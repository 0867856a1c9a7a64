"""Observation encoders: from a dictionary of observation histories to one condition vector."""

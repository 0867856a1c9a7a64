"""The mathematics under ``policy/flow.py``: paths from noise to data, what networks predict on them, solvers, objectives."""

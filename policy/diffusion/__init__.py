"""The mathematics that ``policy/flow.py`` builds on: paths from noise to data, predictions, solvers, objectives."""

"""Measures of models and of what they generate, and the uncertainty of results."""

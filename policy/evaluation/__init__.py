"""How sure a result is: intervals and comparisons."""

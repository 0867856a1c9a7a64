"""Demonstrations: their specifications, their stores, and training windows cut from them."""

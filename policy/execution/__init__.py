"""Executing chunks: observation history, and which action comes next. It knows no environment and no robot."""

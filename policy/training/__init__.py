"""The training loop and what it stands on: order of samples, averages, prefetching, optimizer state, logs."""

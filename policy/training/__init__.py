"""The training loop and what it uses: order of samples, averages, prefetching, optimizer state, logs."""

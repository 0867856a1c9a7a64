"""Learn: the flow-matching core, networks, chunk policies, training and checkpoints."""

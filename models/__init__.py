"""Networks, their losses, training and official-checkpoint loaders: one package per method. No streams, no state."""

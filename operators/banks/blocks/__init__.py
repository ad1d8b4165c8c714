"""The parts of BlockBank: how a block is stored, where it lies (tensors, files), which copies are kept near, who reads it."""

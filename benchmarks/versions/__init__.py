"""Two checkouts side by side: whether operators still give the same rows bit for bit, and whether the engine is as fast."""

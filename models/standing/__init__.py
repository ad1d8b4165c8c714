"""Whether a frame shows what a text is about: the gate of questions that stand, for every method that answers about frames."""

"""4D-VLA: RGB-D geometry, memory bank sampling and the policy network (arXiv 2506.22242)."""

"""VideoStreaming: memories of clips for questions about videos of any length (Qian et al., NeurIPS 2024, arXiv 2405.16009)."""

"""MemPromptTSS: states of sensor streams that listen to prompts (arXiv 2510.09930); its predecessor PromptTSS (2506.11170)."""

"""PromptTPP: temporal point processes with a pool of learned prompts, and the networks they are built on."""

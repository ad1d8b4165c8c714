"""MAMBA (AAAI 2021): multi-level aggregation via memory bank for video object detection. Networks only."""

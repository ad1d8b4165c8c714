"""ReKV: answer questions about a video stream from a bank of its key/value blocks (Di et al., ICLR 2025, arXiv 2503.00540)."""

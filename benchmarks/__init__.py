"""One command per claim of speed or quality: ``python -m benchmarks.<name>``. Results land in ``benchmarks/results``."""

"""Sinks: where rows go. The registered names are ``parquet``, ``arrow``, ``jsonl`` and ``annotated_video``.

All of them write files through :mod:`connectors.sinks.staged`: staged per epoch, renamed into place when it is committed.
"""

"""Sources: what a pipeline reads. One module per kind; the registry of ``pipelines`` maps names to them.

No torch and no Ray here. Bad data becomes a row with ``error``; only a source that cannot be listed or continued raises.
"""

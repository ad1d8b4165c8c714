"""What crosses the boundary of a pipeline: sources, sinks, records and the errors that every layer raises.

No torch and no Ray here. ``connectors.records``, ``errors``, ``options`` and ``extras`` do no I/O and are the only modules of
this package that ``operators`` and ``models`` may import.
"""

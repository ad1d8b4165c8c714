"""The engine's logic: plain classes with a clock passed in. No Ray, no processes, no threads of its own besides the one that
writes snapshots; the runners (``pipelines.runners``) drive it.
"""

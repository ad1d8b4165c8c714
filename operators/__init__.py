"""Stateful stream operators: one package per method, plus ``banks``, the memory that they share.

Torch lives here; Ray, Kafka, decord and open3d do not, so an operator runs in any process.
"""

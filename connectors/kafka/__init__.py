"""What the Kafka source and sink share: how to reach a cluster, and how messages become records and records messages.

Imports kafka-python only where a client is made, so that options can be listed and checked without it.
"""

"""What stands behind the commands of ``pipelines.cli``: texts, progress, logging, and the arguments of trainings."""

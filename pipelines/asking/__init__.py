"""Asks a running pipeline: puts a control row where an operator takes its control rows from, waits where its answers go to."""

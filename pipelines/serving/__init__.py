"""``streambank serve``: a live page of a running pipeline, and the same by the OpenAI chat API and by MCP."""

"""`qwen3-vl describe`: pictures on a command line, asked of a server or of a model in this process.

Speaks `POST /api/v1/describe` and nothing else. Against a server it imports no other floor, so it
starts at once; `in_process` alone loads the model.
"""

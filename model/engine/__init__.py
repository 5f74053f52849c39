"""The continuous-batching engine: decides what runs, owns the one thread that runs it.

Knows no tensor library and no server. Its Runner protocol is what the tensors' floor implements.
"""

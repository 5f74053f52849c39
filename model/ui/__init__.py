"""The page: a Gradio process of its own that asks a server over its public protocols.

It imports no other floor and shares no environment with the server: every Gradio wants pillow
below 13, the server must decode with 13 or newer.
"""

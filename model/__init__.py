"""A KServe-native model server for Qwen3-VL."""

__version__ = "0.1.0"

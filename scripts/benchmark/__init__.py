"""This package beside stock transformers and the original repository: same weights, same inputs, interleaved runs.

Each case is a function of a `Bench` that yields typed rows; a case that fails costs its own row alone.
"""

"""Labelling pictures in bulk: sources of pictures, a journal that survives a kill, the files that tools import."""

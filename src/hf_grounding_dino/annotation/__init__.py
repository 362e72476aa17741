"""Labeling images in bulk: sources of images, predictions that survive a kill, the files that other tools import."""

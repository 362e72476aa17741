"""Prompts, images and post-processing."""

"""Grounding DINO and MM-Grounding-DINO, one network."""

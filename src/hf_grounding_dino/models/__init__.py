"""The detectors, a folder an architecture."""

"""Measuring detectors by the protocols of the papers."""

"""Run a detector: pipeline, large vocabularies, drawing."""

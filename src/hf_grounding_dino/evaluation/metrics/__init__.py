"""The metrics, each an `evaluate.Metric`."""

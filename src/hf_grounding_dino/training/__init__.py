"""Training with Accelerate."""

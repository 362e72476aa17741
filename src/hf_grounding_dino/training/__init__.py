"""Training with Accelerate: `trainer.train` runs a `recipe.Recipe`."""

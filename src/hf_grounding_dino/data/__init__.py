"""Reading, sampling and preparing the data that models learn from."""

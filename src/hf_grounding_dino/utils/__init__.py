"""Files, the Hub and memory: what every room needs."""

"""The page to try a model on: `finding` is what it does, `web` how it looks, `space` puts it on the Hub."""

"""The web demo: `search` is what it does, `web` how it looks, `space` puts it on the Hub."""

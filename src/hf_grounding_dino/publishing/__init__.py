"""Model cards, uploads and remote code."""

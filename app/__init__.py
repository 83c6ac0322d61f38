"""The page and the API that serve the variants of `checkpoints/` side by side."""

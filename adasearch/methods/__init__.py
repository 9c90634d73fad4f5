"""The routes from a large model to a small one; each is a ``Method`` for the one training loop."""

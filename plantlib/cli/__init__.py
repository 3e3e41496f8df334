"""The command `plant`."""

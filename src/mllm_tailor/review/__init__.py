"""The page on which people confirm and correct what a run has read."""

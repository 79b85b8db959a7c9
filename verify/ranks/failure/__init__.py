"""Who failed, where, and in which collective."""

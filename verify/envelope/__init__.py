"""Which settings must match across ranks."""

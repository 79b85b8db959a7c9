"""Ranks that this process starts itself."""

"""What a rank is asked to do."""

"""Many runs as one matrix: rows (model families, say) times columns (combinations), on releases of an engine."""

"""What a process runs on and how: settings that can change bits, environment variables, the identity of its code."""

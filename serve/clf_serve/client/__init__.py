"""What calls a server from Python, blocking or async."""

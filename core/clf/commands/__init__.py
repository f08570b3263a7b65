"""One module per group of commands. None of them imports torch before its command runs."""

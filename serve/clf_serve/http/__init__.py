"""The HTTP API: who may come in, what is read, what is answered, and how it is described."""

"""The commands of the server: embed, index, search, serve, duplicates, gallery."""

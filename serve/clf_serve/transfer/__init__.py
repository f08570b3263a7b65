"""Galleries on their way from one place, or form, to another."""

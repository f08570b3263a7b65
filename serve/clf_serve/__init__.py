"""clf_serve: embedding server, gallery and search page for exported encoders. Needs no torch."""

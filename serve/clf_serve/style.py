"""Colours of every page, light and dark. Everything else about a page is its own."""

VIEWPORT = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
PALETTE = """
:root { color-scheme: light dark; --ground: light-dark(#f6f5f1, #131416); --card: light-dark(#ffffff, #1b1d20);
  --ink: light-dark(#1b1c1e, #ecebe8); --soft: light-dark(#66686d, #9b9da3); --line: light-dark(#e2e0d9, #2e3136);
  --accent: light-dark(#0b7a6b, #56cbb6); --accent-ground: light-dark(#e3f1ee, #17302c); }
"""

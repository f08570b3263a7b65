"""Nearest neighbours for galleries: ``VectorIndex`` searches, ``choose`` says with which structure."""

from clf_serve.index.plan import KINDS, TARGET, Plan, choose
from clf_serve.index.vector_index import IndexInfo, Stamp, VectorIndex
from clf_serve.index.view import Found

__all__ = ["KINDS", "TARGET", "Found", "IndexInfo", "Plan", "Stamp", "VectorIndex", "choose"]

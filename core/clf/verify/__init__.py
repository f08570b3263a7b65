"""Proofs on the user's own plugin and machine: exact resume, ranks that equal one process, export that agrees.

Each function trains a tiny run, most of it in processes of its own, and returns a :class:`Report`; ``clf verify``
prints it. A plugin's own tests call them too: ``assert verify.resume("./my_method.py", kills=3).holds``.
"""

from clf.verify.killing import PLACES, resume
from clf.verify.parity import export
from clf.verify.ranking import ranks
from clf.verify.report import Report

__all__ = ["PLACES", "Report", "export", "ranks", "resume"]

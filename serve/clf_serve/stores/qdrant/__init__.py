"""Galleries in Qdrant, by ``qdrant://HOST:6333/COLLECTION``. Needs ``pip install 'clf-vision[qdrant]'``.

A gallery is one collection, which clf makes and nobody else writes to. To choose its shards, replicas, quantization or
index, make an empty one first: its only vector is called ``clf``, of the model's dimension, with the distance Dot.
"""

from __future__ import annotations

from clf_serve.stores.qdrant.store import QdrantStore

__all__ = ["QdrantStore"]

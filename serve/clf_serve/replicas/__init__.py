"""Several servers as replicas under Ray Serve: ``clf serve --engine ray``, the extra ``ray``.

Ray starts, watches, counts and replaces the replicas, and its HAProxy stands before them. What answers a request is the
application of :mod:`clf_serve.app`, whole, with its own batcher, in each replica; nothing of it is Ray's.

- ``scale``: how many there are, and which options of ``clf serve`` cannot be had with more than one machine or process.
- ``ingress``: Ray's HAProxy: whether it is there, and how it is kept to itself.
- ``cluster``: a Ray cluster of one's own on this machine, or one that runs already.
- ``machines``: whether the machines of a cluster have what replicas open, and how much of them each takes.
- ``replica``: what runs in each replica.
- ``board``: what replicas and command tell each other: logs, metrics, reloads.
- ``running``: the command, from its options to the end.
"""

"""onnxruntime on the CPU, and what all its sessions share."""

from __future__ import annotations

from typing import Any, Literal

from clf.errors import ModelError
from clf_serve.backends.base import (
    INPUT,
    JSON,
    OUTPUT,
    Graph,
    Pixels,
    Port,
    Vectors,
    closed,
    first_line,
    memory_errors,
)

CPU = "CPUExecutionProvider"
NAMES_NODES = "session.record_ep_graph_assignment_info"


class CpuBackend:
    """onnxruntime on the CPU: the reference for all other backends."""

    provider: Literal["cpu"] = "cpu"
    device: Literal["cpu"] = "cpu"
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    exact_rows = True
    pads = False
    arithmetic = None

    def __init__(self, ort: Any, graph: Graph, threads: int) -> None:
        """Raises ModelError: onnxruntime cannot open the graph."""
        self.runtime = f"onnxruntime {ort.__version__}"
        self.threads = threads
        self.notes: list[str] = []
        try:
            self._session: Any = create_session(ort, graph.data, [CPU], threads)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise cannot_be_opened(graph, self.runtime, error) from error

    def ports(self) -> tuple[list[Port], list[Port]]:
        return session_ports(self._session)

    def settle(self, probe: Pixels) -> None:
        pass

    def prepare(self, size: int, probe: Pixels) -> None:
        pass

    def drop(self, size: int) -> None:
        pass

    def run(self, pixels: Pixels) -> Vectors:
        session = self._session
        if session is None:
            raise closed()
        with memory_errors(len(pixels)):
            rows: Vectors = session.run([OUTPUT], {INPUT: pixels})[0]
        return rows

    def facts(self) -> dict[str, JSON]:
        return {}

    def close(self) -> None:
        self._session = None


def create_session(
    ort: Any, data: bytes, providers: list[Any], threads: int, entries: dict[str, str] | None = None
) -> Any:
    """An ``InferenceSession`` that uses what it is told to or raises, instead of printing and using something else."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Threads that wait for work by spinning take the cores from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    session = ort.InferenceSession(data, options, providers=providers, enable_fallback=0)
    if hasattr(session, "_model_bytes"):
        session._model_bytes = b""  # kept only for fallbacks; the weights would lie in memory twice
    return session


def session_ports(session: Any) -> tuple[list[Port], list[Port]]:
    inputs, outputs = (
        [Port(node.name, node.type, list(node.shape)) for node in nodes]
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs


def cannot_be_opened(graph: Graph, runtime: str, error: BaseException) -> ModelError:
    return ModelError(f"{graph.path} cannot be opened by {runtime}: {first_line(error)}")

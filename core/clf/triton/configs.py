"""The text of each ``config.pbtxt``, a ``ModelConfig`` of Triton in protobuf's text form.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

import json

from clf.manifest import Manifest

_EMBEDDINGS = "embeddings"


def embedding(name: str, manifest: Manifest, backend: str, most: int) -> str:
    """Pixels to vectors, batched by Triton with whatever else waits. Warm before it is ready."""
    size = manifest.image_size
    text = f"""name: {_quoted(name)}
backend: {_quoted(backend)}
max_batch_size: {most}
input [
  {{
    name: "images"
    data_type: TYPE_UINT8
    dims: [ {size}, {size}, 3 ]
  }}
]
output [
  {{
    name: "{_EMBEDDINGS}"
    data_type: TYPE_FP32
    dims: [ {manifest.dim} ]
  }}
]
model_warmup [
  {{
    name: "one image"
    batch_size: 1
    inputs {{
      key: "images"
      value: {{
        data_type: TYPE_UINT8
        dims: [ {size}, {size}, 3 ]
        zero_data: true
      }}
    }}
  }}
]
"""
    if most > 1:
        text += """# What waits is run together. A delay, max_queue_delay_microseconds, pays on a GPU if anywhere.
dynamic_batching {
}
"""
    if backend == "python":
        text += _on_cpu(1)
    return text + _parameters({"sha256": manifest.sha256, "preprocessing": manifest.preprocessing})


def decoding(name: str, size: int) -> str:
    """Files to pixels, by Triton's Python backend."""
    return (
        f"""name: {_quoted(name)}
backend: "python"
max_batch_size: 0
input [
  {{
    name: "encoded"
    data_type: TYPE_STRING
    dims: [ -1 ]
  }}
]
output [
  {{
    name: "images"
    data_type: TYPE_UINT8
    dims: [ -1, {size}, {size}, 3 ]
  }}
]
# Processes, each for one request at a time; the files of a request are decoded side by side.
"""
        + _on_cpu(2)
        + _parameters({"image_size": str(size)})
    )


def ensemble(name: str, decoder: str, embedder: str, manifest: Manifest) -> str:
    """Files to vectors: one model after the other, without going back to the client."""
    return f"""name: {_quoted(name)}
platform: "ensemble"
max_batch_size: 0
input [
  {{
    name: "encoded"
    data_type: TYPE_STRING
    dims: [ -1 ]
  }}
]
output [
  {{
    name: "{_EMBEDDINGS}"
    data_type: TYPE_FP32
    dims: [ -1, {manifest.dim} ]
  }}
]
ensemble_scheduling {{
  step [
    {{
      model_name: {_quoted(decoder)}
      model_version: -1
      input_map {{ key: "encoded" value: "encoded" }}
      output_map {{ key: "images" value: "pixels" }}
    }},
    {{
      model_name: {_quoted(embedder)}
      model_version: -1
      input_map {{ key: "images" value: "pixels" }}
      output_map {{ key: "{_EMBEDDINGS}" value: "{_EMBEDDINGS}" }}
    }}
  ]
}}
"""


def _on_cpu(count: int) -> str:
    return f"""instance_group [
  {{
    count: {count}
    kind: KIND_CPU
  }}
]
"""


def _parameters(values: dict[str, str]) -> str:
    return "".join(
        f"""parameters {{
  key: "{key}"
  value: {{ string_value: {_quoted(value)} }}
}}
"""
        for key, value in values.items()
    )


def _quoted(text: str) -> str:
    return json.dumps(text)

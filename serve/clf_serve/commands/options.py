"""The arguments and options by which commands name a model and what runs it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clf_serve.commands.terminal import console
from clf_serve.place import Place

if TYPE_CHECKING:
    from clf_serve.engine import Engine


class Provider(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    openvino = "openvino"


class Variant(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


Model = Annotated[Path, typer.Argument(help="Folder made by clf export.", show_default=False)]
GALLERY = "Folder made by clf index, or the URL of a store (SCHEME://...)."
Gallery = Annotated[Place, typer.Argument(metavar="GALLERY", help=GALLERY, parser=Place.of, show_default=False)]
Images = Annotated[Path, typer.Argument(help="An image, or a folder of images.", show_default=False)]
BatchSize = Annotated[int, typer.Option(min=1, max=4096, help="Images decoded and committed together.")]
ProviderOption = Annotated[Provider, typer.Option(help="What runs the model; auto: a GPU that works, else the CPU.")]
VariantOption = Annotated[Variant, typer.Option(help="Which of the model's graphs; see clf export --variants.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_engine(folder: Path, provider: Provider, variant: Variant, *, warm_up: bool = True) -> Engine:
    """The model; what is worth knowing of it goes to standard error."""
    from clf_serve.engine import Engine

    engine = Engine(folder, provider.value, variant=variant.value)
    if engine.note:
        console(stderr=True).print(engine.note)
    if warm_up:
        engine.warm_up()
    return engine

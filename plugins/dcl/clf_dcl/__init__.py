"""DCL: Decoupled Contrastive Learning, on SimCLR, MoCo or NNCLR, and its weighted form DCLW.

Chun-Hsiao Yeh, Cheng-Yao Hong, Yen-Chi Hsu, Tyng-Luh Liu, Yubei Chen, Yann LeCun. ECCV 2022, arXiv 2110.06848.
Differences from the paper: the mean over anchors instead of the sum, and what its text leaves open is settled as the
README says: whether DCLW's weights are constants to the gradient, and both losses on MoCo and NNCLR.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

import clf
from clf import losses
from clf_moco import MoCo, MoCoConfig
from clf_nnclr import NNCLR, NNCLRConfig
from clf_simclr import SimCLR, SimCLRConfig


class DCLConfig(clf.MethodConfig):
    base: Literal["simclr", "moco", "nnclr"] = Field(
        "simclr", description="the method whose loss is decoupled; its recommended engine settings are used"
    )
    temperature: float = Field(0.1, gt=0, description="tau, with every base; the authors' tuned ImageNet value is 0.2")
    weighted: bool = Field(False, description="DCLW: pairs that are far apart attract more, close ones less")
    sigma: float = Field(0.5, gt=0, description="of DCLW; the greater, the nearer its weights are to 1")
    detach_weight: bool = Field(True, description="DCLW's weights are constants to the gradient; the paper is silent")
    simclr: SimCLRConfig = Field(SimCLRConfig(), description="settings of the base simclr, all but the temperature")
    moco: MoCoConfig = Field(MoCoConfig(), description="settings of the base moco, all but the temperature")
    nnclr: NNCLRConfig = Field(NNCLRConfig(), description="settings of the base nnclr, all but the temperature")

    @model_validator(mode="after")
    def _every_setting_counts(self) -> Self:
        for base in ("simclr", "moco", "nnclr"):
            for key in _changed(getattr(self, base)):
                if key == "temperature":
                    raise ValueError(f"method.{base}.temperature is not used by dcl: set method.temperature instead")
                if base != self.base:
                    raise ValueError(
                        f"method.{base}.{key} is set, but method.base is {self.base}: remove it or set "
                        f"method.base={base}"
                    )
        unused = [key for key in _changed(self) if key in ("sigma", "detach_weight")]
        if unused and not self.weighted:
            raise ValueError(f"method.{unused[0]} is of DCLW: remove it or set method.weighted=true")
        return self


class DecoupledMethod:
    """What the three methods below share. Their ``config`` is that of the base, their ``settings`` are DCL's."""

    name: ClassVar[str] = "dcl"
    Config: ClassVar[Any] = DCLConfig
    paper: ClassVar[str] = (
        "Yeh, Hong, Hsu, Liu, Chen, LeCun, Decoupled Contrastive Learning, ECCV 2022, arXiv 2110.06848"
    )
    min_batch_size: ClassVar[int] = 16  # for batch norm; the paper's point is that the loss does with small batches

    settings: DCLConfig

    def output(self, each: losses.Decoupled, ctx: clf.Context) -> clf.StepOutput:
        """The loss of this rank's anchors, with what DCL removes and DCLW adds as metrics over those of all ranks."""
        weight, metrics = None, {}
        if self.settings.weighted:
            weight = losses.attraction_weights(
                each.positive, self.settings.sigma, gather=ctx.gather, detach=self.settings.detach_weight
            )  # (A,)
            w = ctx.gather(weight.detach())  # (A x world size,)
            metrics = {"weight_min": w.min(), "weight_max": w.max()}
        with torch.no_grad():
            q = ctx.gather(each.npc_multiplier.detach())  # (A x world size,)
            metrics |= {
                "nt_xent": each.nt_xent.mean(),
                "npc_multiplier": q.mean(),
                "npc_multiplier_std": q.std(correction=0),
                "positive_similarity": each.positive.mean(),
                "negative_similarity": each.negative.mean(),
                "contrast_accuracy": (each.positive > each.hardest).to(q.dtype).mean(),
            }
        return clf.StepOutput(each.loss(weight), metrics)


class DCL(DecoupledMethod, SimCLR):
    """DCL on SimCLR; :meth:`build` makes one of the other two where the settings ask for it."""

    def __init__(self, backbone: clf.Backbone, config: DCLConfig, data: clf.DataSpec) -> None:
        super().__init__(backbone, _at(config.simclr, config.temperature), data)
        self.settings = config

    @classmethod
    def build(cls, backbone: clf.Backbone, config: clf.MethodConfig, data: clf.DataSpec) -> clf.Method[Any]:
        assert isinstance(config, DCLConfig)
        if data.batch_size < 2 and config.base != "moco":
            raise clf.ConfigError(
                f"train.batch_size = {data.batch_size} leaves dcl without negatives, because the positive is not among "
                "them: set train.batch_size to 2 or more, on all ranks together"
            )
        bases: dict[str, Any] = {"simclr": cls, "moco": DCLMoCo, "nnclr": DCLNNCLR}
        try:
            method: clf.Method[Any] = bases[config.base](backbone, config, data)
        except clf.ConfigError as error:  # the base names its settings as if it stood alone
            raise clf.ConfigError(str(error).replace("method.", f"method.{config.base}.")) from error
        return method

    @classmethod
    def recommended(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the base recommends, so that base and DCL on it are trained alike."""
        bases: dict[str, type[clf.Method[Any]]] = {"moco": MoCo, "nnclr": NNCLR}
        return bases.get(str(given.get("base")), SimCLR).recommended({})

    def contrast(self, a: Tensor, b: Tensor, ctx: clf.Context) -> clf.StepOutput:
        """Each of the 2N local anchors against the 2(M - 1) views of all other images."""
        return self.output(losses.decouple_views(a, b, self.config.temperature, gather=ctx.gather, rank=ctx.rank), ctx)


class DCLMoCo(DecoupledMethod, MoCo):
    """DCL on MoCo: only the K rows of the queue are in the denominator."""

    def __init__(self, backbone: clf.Backbone, config: DCLConfig, data: clf.DataSpec) -> None:
        super().__init__(backbone, _at(config.moco, config.temperature), data)
        self.settings = config

    def contrast(self, q: Tensor, k: Tensor, queue: Tensor, ctx: clf.Context) -> clf.StepOutput:
        """Queries (N, E) with their keys (N, E) against the rows of a queue (K, E)."""
        return self.output(losses.decouple(q, k, queue, self.config.temperature), ctx)


class DCLNNCLR(DecoupledMethod, NNCLR):
    """DCL on NNCLR: each neighbour against the M - 1 predictions of other images."""

    def __init__(self, backbone: clf.Backbone, config: DCLConfig, data: clf.DataSpec) -> None:
        super().__init__(backbone, _at(config.nnclr, config.temperature), data)
        self.settings = config

    def contrast(self, neighbours: Tensor, p: Tensor, ctx: clf.Context) -> clf.StepOutput:
        """Neighbours (N, E) with the predictions (N, E) of the same images, which are gathered here."""
        n = len(p)
        own = torch.arange(n, device=p.device)[:, None] + ctx.rank * n  # (N, 1), this rank's rows among the M
        return self.output(losses.decouple(neighbours, p, ctx.gather(p), self.config.temperature, own), ctx)


def _at(config: Any, temperature: float) -> Any:
    """A base's settings with DCL's temperature."""
    return config.model_copy(update={"temperature": temperature})


def _changed(config: clf.MethodConfig) -> list[str]:
    """The keys whose values are not the defaults."""
    return [key for key, field in type(config).model_fields.items() if getattr(config, key) != field.default]


@clf.hookimpl
def clf_methods() -> list[type[DCL]]:
    return [DCL]

"""The settings, and which of them fit together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clf_simclr import SimCLRConfig


class BatchCurationConfig(SimCLRConfig):
    mode: Literal["refresh", "best_of_k", "reject_batch", "random_refresh", "hard", "oracle"] = Field(
        "refresh", description="refresh: new views for rejected pairs; the others are controls; oracle uses labels"
    )
    sides: Literal["similar", "both"] = Field(
        "similar", description="judge similar pairs, or dissimilar images too (mode refresh)"
    )
    phi: float = Field(0.1, ge=0, lt=1, description="share of the pairs to reject, at most about")
    rho_min: float = Field(0.02, ge=0, le=1, description="a pair of at most this rank is never rejected")
    beta: float = Field(0.99, ge=0, lt=1, description="decay of all running thresholds, per curated batch")
    threshold: Literal["budget", "fixed"] = Field("budget", description="reject above the running quantile, or rho")
    rho: float = Field(0.05, ge=0, lt=1, description="rank that is bad for threshold=fixed and mode=reject_batch")
    rounds: int = Field(2, ge=0, description="R, times a rejected pair is drawn again; 0 = measure only")
    fallback: Literal["best", "original", "drop"] = Field(
        "best", description="what stays of an image whose new pairs are all rejected; drop: nothing (one process only)"
    )
    trials: int = Field(
        4, ge=2, description="K, sets of views in mode best_of_k and reject_batch, the loader's included"
    )
    space: Literal["z", "h"] = Field(
        "z", description="embedding that is ranked: projection, or the backbone's features"
    )
    score_mode: Literal["eval", "train"] = Field(
        "eval", description="batch norm while scoring: its averages, or the batch"
    )
    single_pass: bool = Field(False, description="rank by the training's own forward (batch norm in train mode)")
    single_pass_images: int = Field(
        32, ge=1, description="with single_pass, rejected images on all ranks below which a round is left out"
    )
    start_epoch: int | None = Field(
        None,
        ge=0,
        description="first epoch that is curated; before it this is SimCLR bit for bit; derived: 10, at most a tenth "
        "of train.epochs, as the warm-up of the learning rate",
    )
    stop_epoch: int | None = Field(None, ge=1, description="first epoch that is not curated any more")
    every: int = Field(1, ge=1, description="curate each so many steps")
    dissimilar_action: Literal["swap", "mask"] = Field(
        "swap", description="with sides=both: exchange conflicting images, or leave them out of each other's loss"
    )
    evict_share: float = Field(1 / 16, gt=0, le=0.25, description="share of a batch that may be exchanged")
    conflict_quantile: float = Field(
        0.5, ge=0, le=1, description="images more alike than this quantile of the similar pairs are in conflict"
    )
    oracle: str | None = Field(None, description="file of the supervised classifier that mode=oracle asks (diagnostic)")
    labels: str | None = Field(None, description=".npy of labels, for two recorded diagnostics and nothing else")

    @property
    def swaps(self) -> bool:
        """Whether images are exchanged."""
        return self.sides == "both" and self.dissimilar_action == "swap"

    @model_validator(mode="after")
    def _fits_together(self) -> BatchCurationConfig:
        for wrong, sentence in (
            (
                self.mode == "oracle" and not self.oracle,
                "mode = oracle needs method.oracle, the file of a classifier: tests/benchmarks/curation_oracle.py "
                "writes one",
            ),
            (self.oracle and self.mode != "oracle", "oracle is read with method.mode=oracle only: set both or neither"),
            (
                self.dissimilar_action == "mask" and self.sides != "both",
                "dissimilar_action = mask is of method.sides=both: set that too, or leave it out",
            ),
            (
                self.trials != 4 and self.mode not in ("best_of_k", "reject_batch"),
                "trials are of method.mode=best_of_k and method.mode=reject_batch: set one of them, or leave it out",
            ),
            (self.sides == "both" and self.mode != "refresh", "sides = both goes with method.mode=refresh only"),
            (
                self.fallback == "drop" and (self.sides == "both" or self.mode not in ("refresh", "oracle")),
                "fallback = drop goes with method.mode=refresh or oracle and method.sides=similar only",
            ),
            (
                self.single_pass and (self.mode, self.sides, self.space) != ("refresh", "similar", "z"),
                "single_pass goes with method.mode=refresh, method.sides=similar and method.space=z only",
            ),
            (
                self.single_pass and self.fallback == "drop",
                "single_pass cannot drop images, whose embeddings are part of the step: use method.fallback=best",
            ),
            (
                self.stop_epoch is not None and self.stop_epoch <= (self.start_epoch or 0),
                f"stop_epoch = {self.stop_epoch} must be above method.start_epoch = {self.start_epoch or 0}",
            ),
        ):
            if wrong:
                raise ValueError(sentence)
        return self

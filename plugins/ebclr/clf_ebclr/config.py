"""Settings of EBCLR. Defaults are those of the official configuration files, which are the same for all data sets."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

import clf


class EBCLRConfig(clf.MethodConfig):
    temperature: float = Field(0.1, gt=0, description="tau of the energy ||z - z'||^2 / tau (equation 6)")
    generative_weight: float = Field(0.1, ge=0, description="lambda (equation 11); 0: no generative term, no sampling")
    norm_penalty: float = Field(
        0.001, ge=0, description="lambda_1, of the sum over the batch of squared raw projections; inside lambda"
    )
    hidden_dim: int = Field(0, ge=0, description="width of the projector's hidden layer; 0 = the backbone's width")
    projection_dim: int = Field(128, ge=1, description="E, length of a projection")
    sgld_steps: int = Field(10, ge=1, description="T, steps of each chain in a training step")
    step_size: float = Field(0.05, gt=0, description="alpha, of the chains; pixels lie in [-1, 1]")
    gradient_clamp: float = Field(1.0, gt=0, description="delta, elementwise (equation 21)")
    noise_min: float = Field(0.01, ge=0, description="sigma_min, of old chains")
    noise_max: float = Field(0.05, ge=0, validate_default=True, description="sigma_max, of fresh chains")
    noise_stages: int = Field(3, ge=1, description="K, visits after which a chain has sigma_min")
    buffer_size: int | None = Field(
        None, ge=1, description="chains in the replay buffer; derived: 50000, at most the number of training images"
    )
    restart: float | None = Field(
        None,
        ge=0,
        le=1,
        description="rho, share of chains that start anew; derived: mnist 0.4, fashion_mnist 0.6, others 0.2",
    )
    restart_rule: Literal["bernoulli", "fixed"] = Field(
        "bernoulli",
        description="bernoulli: each chain with probability rho (3.3); fixed: int(rho x batch) places drawn with "
        "replacement, as in the official code, in effect fewer",
    )
    proposal_mix: float = Field(1.0, ge=0, le=1, description="share of the data in a fresh start; the rest is noise")
    augmentation: Literal["per_sample", "chunked"] = Field(
        "per_sample", description="chunked: as many images as a batch has share a draw, as in the official code"
    )
    buffer_chunk: int = Field(256, ge=1, description="images augmented at a time to fill the buffer")
    view_noise: float = Field(0.03, ge=0, description="standard deviation of the noise added to views in [0, 1]")

    @field_validator("noise_max")
    @classmethod
    def _rising(cls, most: float, info: ValidationInfo) -> float:
        least = info.data.get("noise_min", most)
        if least > most:
            raise ValueError(f"it is below method.noise_min = {least:g}, but noise falls with the age of a chain")
        return most

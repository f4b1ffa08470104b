"""The base class of all options, and the types that several of them share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Combine = Literal["mean", "worst", "uncertainty"]  # see alignment.models.ensembles


class Config(BaseModel):
    """Base of all options: frozen, and an unknown key is an error. Forms show the key as it is in recipes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, field_title_generator=lambda name, _: name
    )

"""The base of every settings class of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings classes: frozen, typed, unknown settings refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, validate_default=True)
    renamed: ClassVar[Mapping[str, str]] = {}  # earlier names of settings; they are refused with the present name

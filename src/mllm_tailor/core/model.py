"""What methods need of a model: interfaces that a loaded model fulfils, so that `methods` does not import `models`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import device, dtype


class ModelFamily(Protocol):
    """A kind of model."""

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Part (vision, projector, language, audio, head) -> prefixes of its module and weight names."""
        ...


class ModelModules(Protocol):
    """Modules and where the parts lie; a model on the meta device is enough."""

    @property
    def model(self) -> Any:
        """The transformers model."""
        ...

    @property
    def family(self) -> ModelFamily:
        """The kind of model."""
        ...


class AppliedMethod(Protocol):
    """A tuning method at work in a model."""

    @property
    def method(self) -> Any:
        """The `methods.MethodSet`."""
        ...

    @property
    def adapters(self) -> Sequence[Any]:
        """What each of its assignments put into the model: a `methods.base.InjectedAdapter` each."""
        ...


class TunableModel(Protocol):
    """A loaded model, as methods see it."""

    model: Any  # the transformers model
    quantize: str | None
    applied: AppliedMethod | None  # set when a method is applied or loaded, None again once it is merged

    @property
    def family(self) -> ModelFamily:
        """The kind of model."""
        ...

    @property
    def path(self) -> str:
        """The name it was asked for by."""
        ...

    @property
    def device(self) -> device:
        """Where its weights lie."""
        ...

    @property
    def dtype(self) -> dtype:
        """Of its frozen weights."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Fingerprint of the checkpoint's files."""
        ...

    def input_settings(self) -> Mapping[str, Any]:
        """Settings that decide what a sample becomes: tiles, frames, margins, system text, chat template."""
        ...

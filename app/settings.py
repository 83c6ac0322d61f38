"""Environment variables -> one frozen, checked dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
DEVICES = ("auto", "cpu", "cuda", "tensorrt")
PRECISIONS = ("fp32", "tf32", "fp16", "int8")
LOG_FORMATS = ("text", "json")


def _spec(
    help_text: str, read: Callable[[Any], Any], right: str, ok: Callable[[Any], bool]
) -> dict:
    """What a setting is for, how its text is read, and which values are right."""
    return {"help": help_text, "read": read, "right": right, "ok": ok}


def _whole(help_text: str, low: int, high: int) -> dict:
    right = f"a whole number from {low} to {high}"
    return _spec(help_text, int, right, lambda value: low <= value <= high)


def _amount(help_text: str, high: int) -> dict:
    right = f"a number above 0, at most {high}"
    return _spec(help_text, float, right, lambda value: 0 < value <= high)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the app is served. Field `name` is the variable NB_NAME and the option --name."""

    host: str = field(
        default="127.0.0.1",
        metadata=_spec(
            "address to listen on; 0.0.0.0 lets other machines in",
            lambda value: str(value).strip(),
            "an address such as 127.0.0.1 or 0.0.0.0",
            bool,
        ),
    )
    port: int = field(
        default=7860, metadata=_whole("port to listen on; 0 takes a free one", 0, 65535)
    )
    checkpoints: Path = field(
        default=DEFAULT_CHECKPOINTS,
        metadata=_spec(
            "folder that holds manifest.json",
            lambda value: Path(value).expanduser(),
            "a folder",
            # Whether it can be served is for the registry to say.
            lambda value: isinstance(value, Path),
        ),
    )
    device: str = field(
        default="auto",
        metadata=_spec(
            "auto, cpu, cuda or tensorrt; auto takes CUDA where a session really runs there",
            lambda value: str(value).lower(),
            f"one of {', '.join(DEVICES)}",
            lambda value: value in DEVICES,
        ),
    )
    precision: str = field(
        default="fp32",
        metadata=_spec(
            "of predictions: fp32; tf32 or fp16 on a GPU; int8 on the CPU; burden stays fp32",
            lambda value: str(value).lower(),
            f"one of {', '.join(PRECISIONS)}",
            lambda value: value in PRECISIONS,
        ),
    )
    threads: int = field(
        default=0,
        metadata=_whole(
            "CPU threads of one prediction; 0 takes every usable core, at most 8", 0, 256
        ),
    )
    concurrency: int = field(
        default=8,
        metadata=_whole("comparisons at work at once, in turns, and as many predictions", 1, 64),
    )
    queue_size: int = field(
        default=32,
        metadata=_whole("calls that may wait, of all kinds; more are told to come back", 1, 10_000),
    )
    max_upload_mb: float = field(
        default=20.0, metadata=_amount("largest file taken in, in MB", 1000)
    )
    max_megapixels: float = field(
        default=40.0, metadata=_amount("largest photo taken in, in million pixels", 1000)
    )
    max_request_mb: float = field(
        default=1.0, metadata=_amount("largest request that is no upload, in MB", 1000)
    )
    rate_per_minute: int = field(
        default=0,
        metadata=_whole("calls and uploads a minute from one address; 0 sets no limit", 0, 100_000),
    )
    trusted_proxies: str = field(
        default="127.0.0.1",
        metadata=_spec(
            "addresses and networks whose X-Forwarded-For is believed, by commas; * believes all",
            lambda value: str(value).strip(),
            "addresses and networks by commas, or *",
            bool,
        ),
    )
    stop_seconds: float = field(
        default=25.0, metadata=_amount("time that running calls get when the app is stopped", 3600)
    )
    log_format: str = field(
        default="text",
        metadata=_spec(
            "text, or json for one object a line",
            lambda value: str(value).lower(),
            f"one of {', '.join(LOG_FORMATS)}",
            lambda value: value in LOG_FORMATS,
        ),
    )

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if not spec.metadata["ok"](value):
                raise ValueError(_complaint(spec.name, value, spec.metadata["right"]))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], **overrides: Any) -> Settings:
        """Settings from NB_... variables.

        Args:
            environ: Usually `os.environ`; an empty value counts as not set.
            **overrides: Values that win over the environment, by field name, as text or typed; None
                counts as not given.

        Raises:
            ValueError: If a value cannot be read or is out of range; the text names the variable
                and the option.
        """
        specs = {spec.name: spec.metadata for spec in dataclasses.fields(cls)}
        if unknown := sorted(set(overrides) - set(specs)):
            raise ValueError(f"unknown settings {unknown}; available: {', '.join(specs)}")
        values: dict[str, Any] = {}
        for name, spec in specs.items():
            given = overrides.get(name)
            if given is None:
                given = environ.get(variable(name), "").strip() or None
            if given is None:
                continue
            try:
                values[name] = spec["read"](given)
            except (TypeError, ValueError):
                raise ValueError(_complaint(name, given, spec["right"])) from None
        return cls(**values)


def variable(name: str) -> str:
    """Environment variable of a field, e.g. NB_PORT."""
    return f"NB_{name.upper()}"


def option(name: str) -> str:
    """Command line option of a field, e.g. --max-upload-mb."""
    return f"--{name.replace('_', '-')}"


def _complaint(name: str, given: Any, right: str) -> str:
    return f"{variable(name)} ({option(name)}) must be {right}, got {str(given)!r}"

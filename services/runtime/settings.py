"""Settings of a service: flags over environment variables over defaults."""

import os
import sys
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from services.runtime.channel import MAX_MESSAGE_BYTES


class ServiceSettings(BaseSettings):
    """What every service can be told; a stage's settings add to it."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    host: str = Field("127.0.0.1", description="address to listen on", min_length=1)
    port: int = Field(0, ge=0, le=65535, description="port for gRPC; 0 takes any free one")
    metrics_port: int = Field(0, ge=0, le=65535, description="port for Prometheus metrics; 0 takes any free one")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["json", "console"] = Field("json", description="one JSON object a line, or text for people")
    grace_seconds: float = Field(
        30.0, ge=0, le=3600, description="time that open streams get to end after SIGTERM, in seconds"
    )
    max_message_bytes: int = Field(
        MAX_MESSAGE_BYTES, ge=65536, le=2**31 - 1, description="largest message that is taken or sent, in bytes"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment; the latter only under a stage's prefix, or HOST and PORT would be ours."""
        assert isinstance(env_settings, EnvSettingsSource)
        return (init_settings, env_settings) if env_settings.env_prefix else (init_settings,)


Settings = TypeVar("Settings", bound=ServiceSettings)


def load(settings_class: type[Settings], argv: list[str], *, stage: str) -> Settings:
    """The settings of `stage` from flags (--metrics-port) over variables (CHROMA_<STAGE>_METRICS_PORT) over defaults.

    An unknown flag or variable, or a value that is refused, is said on stderr and ends the process with status 2.
    """
    prefix = f"CHROMA_{stage.upper()}_"
    problems = [
        f"unknown environment variable {name}"
        for name in sorted(os.environ)
        if name.upper().startswith(prefix)
        and name.upper().removeprefix(prefix).lower() not in settings_class.model_fields
    ]
    try:
        settings = settings_class(
            _env_prefix=prefix,
            _env_ignore_empty=False,
            _cli_parse_args=argv,
            _cli_prog_name=f"python -m services.{stage}",
            _cli_kebab_case=True,
            _cli_implicit_flags=True,
            _cli_exit_on_error=False,
            _cli_show_env_vars=True,
        )
    except SettingsError as error:
        problems.append(str(error))
    except ValidationError as error:
        problems += [str(entry) for entry in error.errors()]
    else:
        if not problems:
            return settings
    print("\n".join(f"{stage}: {problem}" for problem in problems), file=sys.stderr)  # noqa: T201
    raise SystemExit(2)

"""Settings of a service: flags over environment variables over defaults."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from services.runtime.channel import MAX_MESSAGE_BYTES
from services.runtime.tls import ServerTls


class ProcessSettings(BaseSettings):
    """What every process can be told; its services' settings add fields, each with a description.

    Made by hand (in tests) it knows only its arguments; the environment counts under a prefix, with `load`.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["json", "console"] = Field("json", description="one JSON object a line, or text for people")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic passes them by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment; without a prefix the latter is left out, or HOST and PORT would be ours."""
        assert isinstance(env_settings, EnvSettingsSource)
        return (init_settings, env_settings) if env_settings.env_prefix else (init_settings,)


class ServerSettings(ProcessSettings):
    """What every process that listens can be told."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(0, ge=0, le=65535, description="port to serve at; 0 takes any free one")
    metrics_port: int = Field(0, ge=0, le=65535, description="port for Prometheus metrics; 0 takes any free one")
    grace_seconds: float = Field(
        30.0, ge=0, le=3600, description="time that open streams get to end after SIGTERM, in seconds"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+$",
        description="OpenTelemetry collector that traces of turns go to, as http://collector:4317; needs the extra "
        "tracing; none if unset",
    )
    trace_ratio: float = Field(
        1.0, ge=0, le=1, description="part of the turns that is traced, where whoever calls does not say which are"
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file with the server's certificate and those above it; without one, connections are not "
        "encrypted. It, the key and the CA are read again when they change",
    )
    tls_key: Path | None = Field(None, description="PEM file with the certificate's key")
    tls_ca: Path | None = Field(
        None,
        description="PEM file with the authority of the callers' certificates; without one, callers need none",
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together")
        if self.tls_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_ca needs tls_certificate and tls_key")
        return self

    @property
    def tls(self) -> ServerTls | None:
        """The server's TLS, if it has any."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return ServerTls(self.tls_certificate, self.tls_key, self.tls_ca)


class ServiceSettings(ServerSettings):
    """What every gRPC service can be told."""

    max_message_bytes: int = Field(
        MAX_MESSAGE_BYTES, ge=65536, le=2**31 - 1, description="largest message that is taken or sent, in bytes"
    )
    max_metadata_bytes: int = Field(
        8192, ge=1024, le=2**20, description="most that the metadata of a call may take, in bytes"
    )
    connection_age_seconds: float = Field(
        60.0,
        gt=0,
        le=86400,
        description="age at which a connection takes no further calls, in seconds: its caller opens another, asks for "
        "the name again and so finds new replicas; calls that are open go on for as long as they take",
    )
    connection_stream_limit: int = Field(
        1024, ge=1, le=2**20, description="most calls at a time over one connection; further ones wait at their caller"
    )


Settings = TypeVar("Settings", bound=ProcessSettings)


def load(settings_class: type[Settings], argv: list[str], *, stage: str) -> Settings:
    """The settings of `stage` from flags (--metrics-port) over variables (CHROMA_<STAGE>_METRICS_PORT) over defaults.

    `argv` is without the program's name. An unknown flag or variable, or a value that is refused, is said on stderr,
    a sentence each, and ends the process with status 2; --help lists all and ends it with 0.
    """
    prefix = f"CHROMA_{stage.upper()}_"
    options: dict[str, Any] = {
        "_env_prefix": prefix,
        "_cli_parse_args": argv,
        "_cli_prog_name": f"python -m services.{stage}",
        "_cli_kebab_case": True,
        "_cli_implicit_flags": True,
        "_cli_show_env_vars": True,
        "_cli_exit_on_error": False,
    }
    problems = [
        f"{name} is not a setting of this service"
        for name in sorted(os.environ)
        if name.upper().startswith(prefix) and name[len(prefix) :].lower() not in settings_class.model_fields
    ]
    try:
        settings = settings_class(**options)
    except SettingsError as error:
        message = str(error).removeprefix("error parsing CLI: ")
        problems.append(message.replace("unrecognized arguments:", "unknown arguments:"))
    except ValidationError as error:
        problems += _sentences(error, argv, prefix)
    else:
        if not problems:
            return settings
    print("\n".join(f"{stage}: {problem}" for problem in problems), file=sys.stderr)  # noqa: T201
    raise SystemExit(2)


def _sentences(error: ValidationError, argv: list[str], prefix: str) -> Iterator[str]:
    for entry in error.errors():
        message = entry["msg"].removeprefix("Value error, ")
        if not entry["loc"]:  # a rule about several settings
            yield message
            continue
        name = str(entry["loc"][0])
        flag, variable = f"--{name.replace('_', '-')}", f"{prefix}{name.upper()}"
        is_flag = any(argument.split("=")[0] in (flag, f"--no-{flag[2:]}") for argument in argv)
        source = "from the command line" if is_flag else f"from {variable}"
        if entry["type"] == "missing":
            yield f"{flag} is required (or {variable})"
        elif entry["type"] == "value_error":  # a stage's own rule and its own words
            yield f"{flag}: {message} ({source})"
        else:
            wanted = re.sub(r"^\w+ should ", "must ", message).split(", unable")[0]
            yield f"{flag} {wanted}: got {entry['input']!r} ({source})"

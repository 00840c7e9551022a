"""What the gateway can be told."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from services.runtime.address import check_address
from services.runtime.settings import ServerSettings
from services.runtime.tls import ClientTls, client_tls


class GatewaySettings(ServerSettings):
    """The gateway's settings."""

    orchestrator_address: Annotated[str, AfterValidator(check_address)] = Field(
        description="where the orchestrators are: host:port, a list of those by IP address, or dns:///name:port for "
        "all addresses of a name"
    )
    orchestrator_tls_ca: Path | None = Field(
        None,
        description="PEM file with the authority of the orchestrators' certificates; without one, connections to them "
        "are not encrypted. It, the certificate and the key are read again when they change",
    )
    orchestrator_tls_certificate: Path | None = Field(
        None, description="PEM file with the certificate that is shown to the orchestrators, and those above it"
    )
    orchestrator_tls_key: Path | None = Field(None, description="PEM file with that certificate's key")
    orchestrator_tls_name: str | None = Field(
        None,
        description="name that the orchestrators' certificates are made out to, where it is not the host of their "
        "addresses",
    )
    model_name: str = Field("chroma-4b", min_length=1, description="what clients call the model")
    cors_origins: list[str] = Field(
        [], description='origins of web pages that may call, as a JSON list; ["*"] for all; none by default'
    )
    body_limit_bytes: int = Field(
        32 * 1024 * 1024, ge=1024, description="largest body of a request that is taken, in bytes"
    )
    body_seconds: float = Field(30.0, gt=0, description="longest time that a request may take to arrive, in seconds")
    reply_seconds: float = Field(
        600.0, gt=0, description="longest time that a request may take to be answered, in seconds"
    )
    socket_limit: int = Field(1000, ge=1, description="most WebSockets at a time; a further one is refused")

    @model_validator(mode="after")
    def _orchestrator_tls_is_whole(self) -> Self:
        _ = self.orchestrator_tls  # raises ValueError
        return self

    @property
    def orchestrator_tls(self) -> ClientTls | None:
        """TLS towards the orchestrators, if there is any."""
        return client_tls(
            "orchestrator_tls",
            self.orchestrator_tls_ca,
            self.orchestrator_tls_certificate,
            self.orchestrator_tls_key,
            self.orchestrator_tls_name,
        )

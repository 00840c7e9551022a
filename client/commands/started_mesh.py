"""A mesh that a command starts for itself."""

from collections.abc import Callable

from rich.console import Console

from client.errors import InputError
from client.mesh_settings import SERVICES, MeshSettings
from client.service_process import ServiceEvent
from client.supervisor import check_server_installed


def service_reporter(console: Console) -> Callable[[ServiceEvent], None]:
    """Tells what happens to the services of a mesh."""
    width = max(len(service) for service in SERVICES)

    def report(event: ServiceEvent) -> None:
        what = {
            "started": "starting",
            "ready": f"ready at {event.address} after {event.seconds:.1f} s, metrics at {event.metrics_address}"
            + (f" ({event.size})" if event.size else ""),
            "lost": f"{event.reason}; starts again in {event.pause_seconds:g} s",
            "stopped": "stopped",
        }[event.kind]
        console.print(
            f"{event.service:{width}}  pid {event.pid}  {what}", markup=False, highlight=False, soft_wrap=True
        )

    return report


def mesh_to_start(
    address: str | None, asked: MeshSettings, default: MeshSettings, **other_options: bool
) -> MeshSettings | None:
    """The mesh that is started for a run, None where one runs already; then none of what one is started with is given.

    `other_options`: by their names, those that are for a mesh of its own alone, and whether they were given.
    """
    if address is None:
        check_server_installed()
        return asked
    if asked != default or any(other_options.values()):
        names = " or ".join(f"--{name}" for name in other_options)
        raise InputError(f"--address is a mesh that runs already: give neither what one is started with, nor {names}")
    return None

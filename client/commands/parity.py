"""`chroma-mesh parity`: a mesh beside the reference."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands.console import plain_console
from client.commands.options import DeviceOption, DTypeOption, Logs
from client.golden_case import open_golden_folder, read_case
from client.interruption import run
from client.mesh_settings import STAGES, Device, DType, MeshSettings
from client.parity import Outcomes, connected_stages, run_cases
from client.service_log import LineSink, open_log
from client.supervisor import check_server_installed, running_mesh
from client.table import parity_table


def parity(
    folder: Annotated[Path, typer.Argument(help="Folder with checkpoint/ and cases/.")],
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Run all cases, also after one that differs.")
    ] = False,
    device: DeviceOption = Device.CPU,
    dtype: DTypeOption = DType.FLOAT32,
    logs: Logs = None,
) -> None:
    """Compare a mesh with the reference's golden cases, stage by stage and as a whole.

    Exit status 0: all equal; 1: something differs or broke; 2: the folder is not in the format.
    """
    golden = open_golden_folder(folder)
    cases = [read_case(case) for case in golden.cases]
    check_server_installed()
    settings = MeshSettings(checkpoint=str(golden.checkpoint.resolve()), device=device, dtype=dtype)
    console = plain_console()

    async def compare(log: LineSink) -> dict[str, Outcomes]:
        console.print(f"Starting a mesh on {golden.checkpoint}", markup=False)
        async with running_mesh(settings, log=log) as mesh:
            addresses = (mesh.stage_address(stage) for stage in STAGES)
            async with connected_stages(*addresses) as stages:
                outcomes_of_cases = {}
                async for name, outcomes in run_cases(cases, stages, mesh.address, keep_going=keep_going):
                    outcomes_of_cases[name] = outcomes
                    equal = all(outcome.is_equal for outcome in outcomes.values())
                    console.print(f"{name}: {'equal' if equal else 'DIFFERENT'}", markup=False)
                return outcomes_of_cases

    with open_log(logs) as log:
        outcomes_of_cases = run(compare(log))
    console.print(parity_table(outcomes_of_cases))
    equal_count = sum(all(outcome.is_equal for outcome in outcomes.values()) for outcomes in outcomes_of_cases.values())
    not_run = len(cases) - len(outcomes_of_cases)
    console.print(
        f"{equal_count} of {len(cases)} cases equal"
        + (f", {not_run} not run (--keep-going runs all)" if not_run else "")
    )
    if equal_count < len(cases):
        raise typer.Exit(1)

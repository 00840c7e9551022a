"""`chroma-mesh bench`, from its options to its files."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from client.access import Access
from client.bench.measurement import Measurement
from client.bench.progress import BenchProgress
from client.bench.report import Report, described, markdown, write_json
from client.bench.settings import BenchSettings
from client.bench.tables import remarks, tables
from client.errors import ClientError, InputError
from client.interruption import run
from client.mesh_settings import MeshSettings
from client.reply_display import printable
from client.service_log import open_log

WIDTH = 120
"""Columns where there is no terminal."""


def bench(
    settings: BenchSettings,
    mesh: MeshSettings | None,
    address: str,
    *,
    access: Access,
    with_engines: bool,
    out: Path | None,
    logs: str | None,
) -> None:
    """Measures, prints the tables and writes the files, also of a run that was stopped or broke on its way.

    `mesh` is started for the run; None measures the one at `address`, which is reached by
    `access`. ClientError when no reply came at all, and what
    stopped the run at the end of everything.
    """
    make_folder(out)
    report = Report(
        settings=settings,
        mesh=mesh,
        address=address,
        command=shlex.join(["chroma-mesh", *sys.argv[1:]]),
        started_at=datetime.now().astimezone(),
    )
    stopped: ClientError | None = None
    try:
        with open_log(logs) as log, BenchProgress(Console(stderr=True)) as progress:
            run(Measurement(report, access, with_engines, progress, log).run())
    except ClientError as error:
        stopped = error
    if not report.reply_count:
        raise stopped or no_reply(report)
    show(report)
    if out is not None:
        write(report, out)
    if stopped is not None:
        raise stopped


def make_folder(out: Path | None) -> None:
    """Makes the folder of the files before any work is done for them."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be made a folder: {error.strerror or error}") from None


def no_reply(report: Report) -> ClientError:
    """What to say when all turns failed."""
    kinds = Counter(failure.kind for record in report.records for failure in record.failures if not failure.is_warm_up)
    (kind, count), *_ = kinds.most_common(1) or [("none was asked for", 0)]
    return ClientError(f"no turn got a reply: {count} of {kinds.total()} ended with {kind}")


def show(report: Report) -> None:
    """Prints the report."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for name, text in described(report):
        console.print(Text.assemble((f"{name}: ", "bold"), printable(text)))
    for table in tables(report):
        console.print()
        console.print(table.rich())
    console.print()
    for remark in remarks(report):
        console.print(Text(remark))


def write(report: Report, out: Path) -> None:
    """Writes bench.json, bench.md and bench.png."""
    from client.bench.plot import write_plot

    parts: Sequence[str] = [*(table.markdown() for table in tables(report)), *(f"{text}\n" for text in remarks(report))]
    try:
        write_json(report, out / "bench.json")
        (out / "bench.md").write_text(markdown(report, "\n".join(parts)), encoding="utf-8")
        write_plot(report, out / "bench.png")
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written to: {error.strerror or error}") from None
    sys.stdout.write(f"Written to {out}: bench.json, bench.md, bench.png\n")

"""`chroma-mesh bench`, from its options to its files."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from client.access import Access
from client.bench.measurement import Measurement
from client.bench.report import Report, described, markdown, write_json
from client.bench.settings import BenchSettings
from client.bench.tables import remarks, tables
from client.errors import ClientError, InputError
from client.interruption import run
from client.mesh_settings import MeshSettings
from client.report_output import make_folder, show
from client.run_progress import RunProgress
from client.service_log import open_log


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
        with open_log(logs) as log, RunProgress(Console(stderr=True), "frames") as progress:
            run(Measurement(report, access, with_engines, progress, log).run())
    except ClientError as error:
        stopped = error
    if not report.reply_count:
        raise stopped or no_reply(report)
    show(described(report), tables(report), remarks(report))
    if out is not None:
        write(report, out)
    if stopped is not None:
        raise stopped


def no_reply(report: Report) -> ClientError:
    """What to say when all turns failed."""
    kinds = Counter(failure.kind for record in report.records for failure in record.failures if not failure.is_warm_up)
    (kind, count), *_ = kinds.most_common(1) or [("none was asked for", 0)]
    return ClientError(f"no turn got a reply: {count} of {kinds.total()} ended with {kind}")


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

"""`python -m services.colocated`."""

import sys
from functools import partial

import uvloop

from services.colocated.loading import Loading
from services.colocated.settings import ColocatedSettings
from services.colocated.stages import STAGES
from services.runtime.logs import configure
from services.runtime.server import serve_until_signalled
from services.runtime.settings import load

PROCESS = "colocated"


def main() -> None:
    """Serves the reasoner, speech and the codec until it is told to stop."""
    settings = load(ColocatedSettings, sys.argv[1:], stage=PROCESS)
    loading = Loading(len(STAGES))
    servers = {stage.name: stage.server(settings, partial(loading.load, turn)) for turn, stage in enumerate(STAGES)}
    configure(PROCESS, settings)
    uvloop.run(serve_until_signalled(servers))


if __name__ == "__main__":
    main()

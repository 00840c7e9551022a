"""`chroma-mesh call`, from its options to its files."""

from contextlib import ExitStack, suppress

from rich.console import Console

from client.audio_file import check_writable, write_audio
from client.call.caller import Caller
from client.call.clock import FastClock
from client.call.display import CallDisplay
from client.call.microphone import MicrophoneCaller, SoundCard, load_sounddevice
from client.call.report import call_json, call_table, check_json_writable, sums, write_json
from client.call.settings import CallSettings
from client.clock import WallClock
from client.connection import connect
from client.interruption import Interrupted, run


def call(settings: CallSettings) -> None:
    """Holds the call, shows it, and reports it, also one that broke on its way; a person hangs up with Ctrl-C."""
    if settings.out is not None:
        check_writable(settings.out)
    if settings.json is not None:
        check_json_writable(settings.json)
    if settings.script is None:
        load_sounddevice()  # before anybody is called
    with suppress(Interrupted) if settings.script is None else ExitStack():
        run(hold(settings, Console()))


async def hold(settings: CallSettings, console: Console) -> None:
    """One call."""
    display = CallDisplay(console)
    clock = FastClock(WallClock(), settings.speed)
    async with connect(settings.addresses, settings.access) as mesh, mesh.open_session(settings.session) as session:
        with ExitStack() as devices:
            keeps_sound = settings.out is not None
            caller: Caller | MicrophoneCaller
            if settings.script is None:
                input_rate_hz = settings.session.input_format.sample_rate_hz
                packet_samples = input_rate_hz * settings.packet_ms // 1000
                card = devices.enter_context(SoundCard(input_rate_hz, session.sample_rate_hz, packet_samples))
                console.print("Speak; Ctrl-C hangs up. Use headphones, or the mesh hears itself.", style="dim")
                caller = MicrophoneCaller(session, card, clock, watch=display.watch, keeps_sound=keeps_sound)
            else:
                caller = Caller(session, settings.script, clock, watch=display.watch, keeps_sound=keeps_sound)
            try:
                await caller.run()
            finally:
                display.finish()
                report(settings, console, caller)


def report(settings: CallSettings, console: Console, caller: Caller | MicrophoneCaller) -> None:
    """Prints the tables and writes the files."""
    if caller.record.turns:
        console.print(call_table(caller.record).rich())
    console.print(sums(caller.record), highlight=False)
    if settings.json is not None:
        write_json(settings.json, call_json(caller.record, settings.facts()))
    if settings.out is not None and caller.recording is not None:
        write_audio(settings.out, caller.recording.stereo(), caller.recording.sample_rate_hz)

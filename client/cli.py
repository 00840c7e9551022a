"""The `chroma-mesh` command."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.access import Access
from client.addresses import read_addresses
from client.api_key import KeyLimits, Scope, new_key
from client.audio_file import check_writable, read_audio, write_audio
from client.call.command import call
from client.call.script import PATIENCE_SECONDS, Script, SpokenTurn, read_barge_in
from client.call.settings import CallFormat, CallSettings, session_settings
from client.connection import DEFAULT_ADDRESS, connect
from client.errors import ClientError, InputError
from client.golden_case import open_golden_folder, read_case
from client.interruption import Interrupted, run
from client.mesh_settings import SERVICES, STAGES, Device, DType, MeshSettings, Placement, read_replicas
from client.parity import Outcomes, connected_stages, run_cases
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ
from client.reply_display import ReplyDisplay, printable
from client.service_log import open_log
from client.session_settings import SessionSettings
from client.supervisor import LineSink, ServiceEvent, check_server_installed, in_words, running_mesh
from client.table import CONVENTIONS, parity_table, replies_table, voices_table
from client.talk import HeardReply, Turn, talk
from client.voice import VoiceExample
from client.weights import REPOSITORY, REVISION, check_weights, fetch_weights

FRAME_SECONDS = 0.08
VOICE_SECONDS = 30
DEMO_FRAMES = 60
BENCH_CHECKPOINT = "random:tiny"
"""Its replies are as long as they are asked to be."""
DEMO_QUESTIONS = {
    "anew-what-is-the-capital-of-france.flac": "what is the capital of france",
    "anew-and-of-spain.flac": "and of spain",
}
"""Files of the miniature's questions, and what is said in them."""

app = typer.Typer(
    help="Chroma-4B, the open speech-to-speech model, as a mesh of gRPC services.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
voices_app = typer.Typer(help="List the mesh's voices, add and remove them.", invoke_without_command=True)
app.add_typer(voices_app, name="voices")
key_app = typer.Typer(help="Make API keys for the users of a mesh.", no_args_is_help=True)
app.add_typer(key_app, name="key")

Address = Annotated[
    str,
    typer.Option(
        help="Where the mesh's orchestrator listens; of several, a session goes on at another when it loses one.",
        metavar="HOST:PORT,…",
        envvar="CHROMA_MESH_ADDRESS",
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        help="A folder in the published layout, mini for the shipped miniature, or random:tiny for noise.",
        metavar="SPEC",
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where the models run.")]
DTypeOption = Annotated[DType, typer.Option(help="Numbers of reasoner and speech.")]
Logs = Annotated[
    str | None, typer.Option(help="Write the services' logs to this file; - is the terminal.", metavar="FILE")
]


@app.callback()
def access_options(
    context: typer.Context,
    tls: Annotated[
        bool, typer.Option("--tls", help="Connect to the mesh over TLS.", envvar="CHROMA_TLS", show_default=False)
    ] = False,
    ca: Annotated[
        Path | None,
        typer.Option(
            help="PEM file with the authority of the mesh's certificate, for TLS; default: the public ones.",
            envvar="CHROMA_TLS_CA",
            dir_okay=False,
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            help="PEM file with a certificate of one's own, for a mesh that asks for one.",
            envvar="CHROMA_TLS_CERTIFICATE",
            dir_okay=False,
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="PEM file with its key.", envvar="CHROMA_TLS_KEY", dir_okay=False)
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="The API key, for a mesh that asks for one; other users of this machine see it unless it is in the "
            "variable.",
            envvar="CHROMA_API_KEY",
        ),
    ] = None,
) -> None:
    """What comes before the command says how a mesh is reached."""
    context.obj = Access(tls=tls, ca=ca, certificate=certificate, key=key, api_key=api_key)


def main() -> None:
    """Runs the command line; an error is one sentence on stderr and an exit status."""
    try:
        app()
    except ClientError as error:
        sys.stderr.write(f"chroma-mesh: {printable(' '.join(str(error).split()))}\n")
        sys.exit(error.exit_status)
    except BrokenPipeError:  # the reader of our output has left, as in `| head`
        sys.stderr.close()
        sys.exit(1)


@app.command()
def up(
    checkpoint: Checkpoint = "mini",
    device: DeviceOption = Device.AUTO,
    dtype: DTypeOption = DType.AUTO,
    placement: Annotated[
        Placement,
        typer.Option(help="A process for each stage, or one for all three: on one GPU they need not take turns then."),
    ] = Placement.SEPARATE,
    replicas: Annotated[
        str | None,
        typer.Option(
            help="Processes of a service, where it is to have several: reasoner, speech, codec, orchestrator.",
            metavar="SERVICE=N,…",
        ),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Replies at a time, of every stage; default: what its memory holds.")
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(min=0.001, help="What the stages may take on their device, together; default: 90 percent of it."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of reasoner and speech, each; default: half the cores.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where orchestrator and gateway listen; stages stay on 127.0.0.1.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The orchestrator's port; 0 is any free one.")] = 50050,
    reasoner_port: Annotated[int, typer.Option(min=0, max=65535, help="The reasoner's port; 0: any.")] = 0,
    speech_port: Annotated[int, typer.Option(min=0, max=65535, help="The speech stage's port; 0: any.")] = 0,
    codec_port: Annotated[int, typer.Option(min=0, max=65535, help="The codec's port; 0: any.")] = 0,
    metrics_port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65531,
            help="The orchestrator's metrics port; reasoner, speech, codec and gateway take the next four; 0: any.",
        ),
    ] = 0,
    gateway: Annotated[
        bool, typer.Option("--gateway/--no-gateway", help="Whether OpenAI's clients and browsers can call, over HTTP.")
    ] = True,
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The gateway's port; it listens on --host as well; 0: any.")
    ] = 8080,
    voices: Annotated[Path | None, typer.Option(help="Folder that keeps created voices.", file_okay=False)] = None,
    default_voice: Annotated[str | None, typer.Option(help="The voice of sessions that name none.")] = None,
    journal: Annotated[
        str | None,
        typer.Option(
            help="Where sessions are kept, so that they go on when an orchestrator is lost: a file, or "
            "redis://host:port/db. Several orchestrators need it.",
            metavar="FILE|URL",
        ),
    ] = None,
    logs: Logs = None,
) -> None:
    """Start a mesh on this machine: reasoner, speech, codec, orchestrator and gateway; Ctrl-C stops it.

    A service that ends by itself once it was ready is started again.

    Every other setting of a service is an environment variable, CHROMA_<SERVICE>_<SETTING>;
    'python -m services.reasoner --help' lists them.
    """
    settings = MeshSettings(
        checkpoint=checkpoint,
        device=device,
        dtype=dtype,
        placement=placement,
        replicas={} if replicas is None else read_replicas(replicas),
        slots=slots,
        memory_gib=memory_gib,
        threads=threads,
        host=host,
        port=port,
        reasoner_port=reasoner_port,
        speech_port=speech_port,
        codec_port=codec_port,
        metrics_port=metrics_port,
        http_port=http_port if gateway else None,
        voices=voices,
        default_voice=default_voice,
        journal=journal,
    )

    async def stay_up(console: Console, log: LineSink) -> None:
        async with running_mesh(settings, report=service_reporter(console), log=log, restart=True) as mesh:
            console.print(f"The mesh is ready at {in_words(mesh.addresses)}", style="bold")
            if mesh.url is not None:
                console.print(f"HTTP, for OpenAI's clients: {mesh.url}/v1", style="bold", highlight=False)
            console.print("Ctrl-C stops it. To talk to it:", style="dim")
            console.print(f"  chroma-mesh talk question.wav --address {','.join(mesh.addresses)}", style="dim")
            await asyncio.Event().wait()

    check_server_installed()
    console = plain_console()
    with open_log(logs) as log, contextlib.suppress(Interrupted):
        run(stay_up(console, log))
    console.print("The mesh is down.")


@app.command("talk")
def talk_command(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="What you say: WAV, FLAC, OGG or MP3, a turn each.", metavar="FILE")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="What you type, a turn each, after the files. Repeatable.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="WAV of the reply; later ones are numbered: reply-1.wav, …")
    ] = Path("reply.wav"),
    voice: Annotated[str | None, typer.Option(help="Name of the voice that answers.")] = None,
    voice_audio: Annotated[
        Path | None, typer.Option(help="A voice of your own: an example, up to 30 s. Needs --voice-text.")
    ] = None,
    voice_text: Annotated[str | None, typer.Option(help="What is said in --voice-audio.")] = None,
    instructions: Annotated[str | None, typer.Option(help='The system message; "" for none.')] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="0 takes the most likely code. (default: the checkpoint's)"),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Draw among this many codes, 0: all. (default: the checkpoint's)")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same reply. (mesh's default: 0)")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(min=1, max=2**32 - 1, help="Longest reply in frames of 80 ms. (mesh's default: 1000)")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, max=2**32 - 1, help="Longest text of a reply in tokens.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Talk to a mesh: say files or type text, hear replies.

    Several files and texts are several turns of one conversation, files first.
    """
    turns = [Turn(file.name, read_audio(file, USER_RATE_HZ)) for file in files or ()]
    turns += [Turn(shortened(typed), typed) for typed in text or ()]
    if not turns:
        raise InputError("there is nothing to say: give sound files, or text with --text")
    outputs = output_files(out, len(turns))
    settings = SessionSettings(
        voice=chosen_voice(voice, voice_audio, voice_text),
        instructions=instructions,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        max_frame_count=max_frames,
        max_step_count=max_steps,
    )
    run(hold_conversation(Console(), read_addresses(address), settings, turns, outputs, access=context.obj))


@app.command("call")
def call_command(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="What is said: WAV, FLAC, OGG or MP3, a turn each.", metavar="FILE")
    ] = None,
    mic: Annotated[
        bool, typer.Option("--mic", help="Speak yourself: microphone and loudspeaker. Needs the extra 'mic'.")
    ] = False,
    vad: Annotated[
        bool | None,
        typer.Option(
            "--vad/--manual",
            help="Whether the mesh hears that a turn is over, or the caller says so; --mic: the mesh. Default: manual.",
        ),
    ] = None,
    pause: Annotated[float, typer.Option(min=0, max=86_400, help="Seconds from a reply's end to the next turn.")] = 1.0,
    barge_in: Annotated[
        str | None,
        typer.Option(
            help="Seconds after a reply's first sound at which the next turn is spoken over it, for each reply in "
            "turn; - lets it end. As 1.5,-,0.8.",
            metavar="X,…",
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Say all files this many times.")] = 1,
    packet_ms: Annotated[int, typer.Option(min=1, max=100, help="Length of a packet.")] = 20,
    sound_format: Annotated[
        CallFormat, typer.Option("--format", help="Encoding both ways; mulaw and alaw are G.711.")
    ] = CallFormat.PCM16,
    rate: Annotated[
        int | None, typer.Option(help="Samples a second both ways; default: 16000 in, 24000 out, G.711 8000.")
    ] = None,
    voice: Annotated[str | None, typer.Option(help="Name of the voice that answers.")] = None,
    max_frames: Annotated[
        int | None, typer.Option(min=1, max=2**32 - 1, help="Longest reply in frames of 80 ms. (mesh's default: 1000)")
    ] = None,
    speed: Annotated[
        float, typer.Option(min=0.01, max=1000, help="How many times faster than real time the caller lives.")
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="WAV of the call: left the caller, right what was heard.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="The report as JSON.", metavar="FILE")] = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Call a mesh as a person does: speak in packets at real-time pace, listen at once, barge in; report every latency.

    Several files are several turns of one conversation.
    """
    if mic == bool(files):
        raise InputError("give sound files or --mic" + (", not both" if mic else ", there is nothing to say"))
    if mic and (vad is False or barge_in is not None or repeat != 1 or speed != 1):
        raise InputError("--mic is a person: give none of --manual, --barge-in, --repeat and --speed with it")
    settings = session_settings(
        sound_format, rate, is_heard_by_mesh=mic or bool(vad), speed=speed, voice=voice, max_frame_count=max_frames
    )
    input_rate_hz = settings.input_format.sample_rate_hz
    turns = [SpokenTurn(file.name, read_audio(file, input_rate_hz)) for file in files or ()]
    script = Script(
        turns=turns * repeat,
        pause_seconds=pause,
        barge_in_seconds=() if barge_in is None else read_barge_in(barge_in),
        packet_ms=packet_ms,
        patience_seconds=PATIENCE_SECONDS * max(1, speed),  # the mesh hears no faster for a caller in a hurry
    )
    call(
        CallSettings(
            addresses=read_addresses(address),
            access=context.obj,
            session=settings,
            script=None if mic else script,
            packet_ms=packet_ms,
            speed=speed,
            out=out,
            json=json,
        )
    )


@voices_app.callback()
def voices_command(context: typer.Context, address: Address = DEFAULT_ADDRESS) -> None:
    """List the mesh's voices, add and remove them."""
    access: Access = context.obj
    context.obj = (read_addresses(address), access)
    if context.invoked_subcommand is not None:
        return

    async def list_voices() -> None:
        async with connect(read_addresses(address), access) as mesh:
            Console().print(voices_table(await mesh.voices()))

    run(list_voices())


@voices_app.command("add")
def add_voice(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="1 to 64 of a-z, 0-9, '-' and '_'.")],
    audio: Annotated[Path, typer.Option(help="An example of the voice, up to 30 s: WAV, FLAC, OGG or MP3.")],
    text: Annotated[str, typer.Option(help="What is said in the example.")],
    shared: Annotated[
        bool, typer.Option("--shared", help="For all users of the mesh; default: where it asks for keys, yours alone.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="As of 'voices'.", metavar="HOST:PORT,…")] = None,
) -> None:
    """Add a voice from an example and its transcript."""
    example = VoiceExample(text, read_audio(audio, VOICE_RATE_HZ, maximum_seconds=VOICE_SECONDS))

    async def add() -> None:
        of_voices, access = context.obj
        async with connect(read_addresses(address) if address else of_voices, access) as mesh:
            voice = await mesh.add_voice(name, example, shared=shared)
            Console().print(f"Added {voice.name}, {voice.example_seconds:.1f} s.", markup=False)

    run(add())


@voices_app.command("remove")
def remove_voice(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A created voice; the built-in ones stay.")],
    address: Annotated[str | None, typer.Option(help="As of 'voices'.", metavar="HOST:PORT,…")] = None,
) -> None:
    """Remove a voice that was added."""

    async def remove() -> None:
        of_voices, access = context.obj
        async with connect(read_addresses(address) if address else of_voices, access) as mesh:
            await mesh.remove_voice(name)
            Console().print(f"Removed {name}.", markup=False)

    run(remove())


@key_app.command("new")
def new_key_command(
    key_id: Annotated[str, typer.Argument(help="Names the key in logs: 1 to 64 of a-z, 0-9, '-' and '_'.")],
    scope: Annotated[list[Scope] | None, typer.Option(help="What it opens; default: all. Repeatable.")] = None,
    sessions: Annotated[int | None, typer.Option(min=1, help="Sessions at a time; default: the mesh's.")] = None,
    audio_per_minute: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds of audio a minute, heard and made; default: any.")
    ] = None,
    audio_per_hour: Annotated[float | None, typer.Option(min=0.001, help="The same an hour.")] = None,
    audio_per_day: Annotated[float | None, typer.Option(min=0.001, help="The same a day.")] = None,
) -> None:
    """Make an API key: print it, this once, and its entry for the file that CHROMA_ORCHESTRATOR_API_KEYS names."""
    limits = KeyLimits(
        sessions=sessions,
        audio_seconds_per_minute=audio_per_minute,
        audio_seconds_per_hour=audio_per_hour,
        audio_seconds_per_day=audio_per_day,
    )
    key = new_key(key_id, scope or list(Scope), limits)
    typer.echo(f"The key, for its holder; it is not kept anywhere:\n\n{key.secret}\n")
    typer.echo(f"Its entry, for the mesh's file of keys:\n\n{key.entry}")


@app.command()
def weights(
    to: Annotated[Path, typer.Option(help="Folder for the checkpoint.", file_okay=False)] = Path("chroma-4b"),
    revision: Annotated[str, typer.Option(help="Revision of the repository.", metavar="SHA")] = REVISION,
    repo: Annotated[str, typer.Option(help="Repository on the hub.")] = REPOSITORY,
    token: Annotated[
        str | None, typer.Option(help="Access token; default: HF_TOKEN or the one you logged in with.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of the hub; default: HF_ENDPOINT.", hidden=True)] = None,
) -> None:
    """Download the published weights and check them; run it again for what is missing."""
    fetch_weights(to, repository=repo, revision=revision, token=token, endpoint=endpoint)
    held = check_weights(to)
    console = plain_console()
    console.print(
        f"{to} is complete: {held.tensor_count} tensors in {held.shard_count} files, {held.weight_bytes / 1e9:.1f} GB."
    )
    console.print(f"Start it with: chroma-mesh up --checkpoint {to}", style="dim")


@app.command()
def checkpoint(
    spec: Annotated[str, typer.Argument(help="random:tiny, random:small or random:chroma-4b, optionally with :SEED.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Write a random checkpoint in the published layout."""
    check_server_installed()
    command = [sys.executable, "-P", "-m", "services.checkpoints", spec, "--out", str(out)]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


@app.command()
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


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="WAV of the reply; the second is numbered: reply-1.wav.")
    ] = Path("reply.wav"),
    checkpoint: Checkpoint = "mini",
    device: DeviceOption = Device.AUTO,
    logs: Logs = None,
) -> None:
    """Start a mesh, ask it two spoken questions, the second of which needs the first, write the replies, stop it."""
    outputs = output_files(out, len(DEMO_QUESTIONS))
    check_server_installed()
    with resources.as_file(resources.files("mini") / "questions") as folder:
        questions = [Turn(asked, read_audio(folder / name, USER_RATE_HZ)) for name, asked in DEMO_QUESTIONS.items()]
    mesh_settings = MeshSettings(checkpoint=checkpoint, device=device)
    session_settings = SessionSettings(max_frame_count=DEMO_FRAMES)
    console = Console()

    async def show(log: LineSink) -> None:
        async with running_mesh(mesh_settings, report=service_reporter(console), log=log) as mesh:
            await hold_conversation(console, mesh.addresses, session_settings, questions, outputs)

    with open_log(logs) as log:
        run(show(log))


@app.command("bench")
def bench_command(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Option(help="A mesh that runs; without it, one is started for the run.", metavar="HOST:PORT")
    ] = None,
    sessions: Annotated[
        str | None,
        typer.Option(
            help="Callers at a time, turns back to back; 1,2,4,8 is the default without --rate.", metavar="N,…"
        ),
    ] = None,
    replies: Annotated[int, typer.Option(min=1, help="Turns of every caller, after one that is not counted.")] = 4,
    live: Annotated[bool, typer.Option("--live", help="Callers speak and listen in real time, as people do.")] = False,
    rate: Annotated[
        str | None,
        typer.Option(help="Turns a second that arrive whatever becomes of those before, as 0.5,1,2.", metavar="X,…"),
    ] = None,
    duration: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="How long turns arrive at each --rate, in seconds.")
    ] = 60,
    frames: Annotated[int, typer.Option(min=1, max=2**32 - 1, help="Length of a reply in frames of 80 ms.")] = 485,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=2**32 - 1, help="Reasoner steps of a reply; default: 144 to 485 frames."),
    ] = None,
    user_seconds: Annotated[float, typer.Option(min=0.1, max=300, help="What the user says, in seconds.")] = 3,
    voice_seconds: Annotated[float, typer.Option(min=0.1, max=30, help="Example of the voice, in seconds.")] = 10,
    voice: Annotated[
        str | None, typer.Option(help="Answer with this voice of the mesh, rather than one made for the run.")
    ] = None,
    engine: Annotated[
        bool, typer.Option("--engine", help="Measure the engines without a mesh as well, and compare.")
    ] = False,
    flatness: Annotated[
        bool,
        typer.Option("--flatness", help="Also whether TTFA stays the same after long speech and in late turns."),
    ] = False,
    checkpoint: Checkpoint = BENCH_CHECKPOINT,
    device: DeviceOption = Device.AUTO,
    dtype: DTypeOption = DType.AUTO,
    placement: Annotated[Placement, typer.Option(help="As of 'up'.")] = Placement.SEPARATE,
    slots: Annotated[int | None, typer.Option(min=1, help="As of 'up'.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="As of 'up'.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for bench.json, bench.md and bench.png.", metavar="DIR")
    ] = None,
    logs: Logs = None,
) -> None:
    """Measure how fast a mesh answers, as voice apps would notice.

    Exit status 0: measured; 1: no turn got a reply, or something broke; 2: the options do not fit.
    """
    from client.bench.packages import check_bench_installed

    check_bench_installed()
    from client.bench.command import bench
    from client.bench.settings import BenchSettings, read_loads
    from client.bench.shape import ReplyShape

    mesh = MeshSettings(
        checkpoint=checkpoint, device=device, dtype=dtype, placement=placement, slots=slots, threads=threads
    )
    own_mesh = mesh_to_start(address, mesh, MeshSettings(checkpoint=BENCH_CHECKPOINT), engine=engine, logs=bool(logs))
    settings = BenchSettings(
        shape=ReplyShape.of(frames, steps, user_seconds),
        loads=read_loads(sessions, rate, reply_count=replies, is_live=live, duration_seconds=duration),
        voice=voice,
        voice_seconds=voice_seconds,
        is_flatness_asked=flatness,
    )
    # A mesh of its own asks for nothing.
    access = context.obj if own_mesh is None else Access()
    bench(settings, own_mesh, address or "", access=access, with_engines=engine, out=out, logs=logs)


@app.command("evaluate")
def evaluate_command(
    context: typer.Context,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="A set of questions with their answers, as docs/evaluation.md has it, or sound files; default: the "
            "miniature's small set.",
            metavar="SET|FILE",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A mesh that runs; without it, one is started for the run.", metavar="HOST:PORT")
    ] = None,
    voice: Annotated[str | None, typer.Option(help="Name of the voice that answers; default: the set's.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 takes the most likely code; default: the mesh's.")
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Conversations at a time.")] = 1,
    max_frames: Annotated[
        int | None, typer.Option(min=1, max=2**32 - 1, help="Longest reply in frames of 80 ms. (mesh's default: 1000)")
    ] = None,
    voices: Annotated[
        Path | None,
        typer.Option(
            help="Folder with examples of the mesh's voices, NAME.wav and NAME.json; default: the shipped ones.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    require: Annotated[
        str | None,
        typer.Option(
            help="Least shares, as exact=0.97,strangers:exact=0.9; of exact, choice, answered, words, voice, ended. "
            "At most: longest=2.",
            metavar="X,…",
        ),
    ] = None,
    checkpoint: Checkpoint = "mini",
    device: DeviceOption = Device.AUTO,
    dtype: DTypeOption = DType.AUTO,
    placement: Annotated[Placement, typer.Option(help="As of 'up'.")] = Placement.SEPARATE,
    slots: Annotated[int | None, typer.Option(min=1, help="As of 'up'.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="As of 'up'.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="The report as JSON.", metavar="FILE")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the replies as WAV and a figure.", metavar="DIR")
    ] = None,
    logs: Logs = None,
) -> None:
    """Ask a mesh spoken questions and judge what it says.

    Exit status 0: judged; 1: less than --require, or something broke; 2: the set or the options do not fit.
    """
    from client.evaluate.packages import check_evaluate_installed

    check_evaluate_installed()
    from client.evaluate.command import evaluate
    from client.evaluate.evaluation_set import opened_set
    from client.evaluate.requirement import read_requirements
    from client.evaluate.settings import EvaluationSettings

    mesh = MeshSettings(
        checkpoint=checkpoint, device=device, dtype=dtype, placement=placement, slots=slots, threads=threads
    )
    own_mesh = mesh_to_start(address, mesh, MeshSettings(), logs=bool(logs))
    settings = EvaluationSettings(
        voice=voice,
        temperature=temperature,
        max_frame_count=max_frames,
        session_count=sessions,
        voices=voices,
    )
    requirements = read_requirements(require)
    # A mesh of its own asks for nothing.
    access = context.obj if own_mesh is None else Access()
    with opened_set(inputs or ()) as asked:
        evaluate(asked, settings, requirements, own_mesh, address or "", access=access, json=json, out=out, logs=logs)


async def hold_conversation(
    console: Console,
    addresses: Sequence[str],
    settings: SessionSettings,
    turns: Sequence[Turn],
    outputs: Sequence[Path],
    *,
    access: Access | None = None,
) -> None:
    """Takes the turns, shows and writes the replies, and sums them up."""
    unwritten = iter(outputs)
    maximum_seconds = settings.max_frame_count * FRAME_SECONDS if settings.max_frame_count else None

    def keep(reply: HeardReply) -> None:
        write_audio(next(unwritten), reply.samples, reply.sample_rate_hz)

    with ReplyDisplay(console, maximum_seconds) as display:
        replies = await talk(addresses, settings, turns, access=access, watch=display.watch, keep=keep)
    console.print(replies_table(replies, outputs))
    console.print(CONVENTIONS, style="dim")


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


def chosen_voice(name: str | None, audio: Path | None, text: str | None) -> str | VoiceExample | None:
    """The voice that the options name; None leaves it to the mesh."""
    if (audio is None) != (text is None):
        raise InputError("--voice-audio and --voice-text go together: an example and what is said in it")
    if audio is None or text is None:
        return name
    if name is not None:
        raise InputError("give --voice or --voice-audio, not both")
    return VoiceExample(text, read_audio(audio, VOICE_RATE_HZ, maximum_seconds=VOICE_SECONDS))


def output_files(first: Path, count: int) -> list[Path]:
    """Where the replies go: reply.wav, reply-1.wav, reply-2.wav, …"""
    check_writable(first)
    return [first, *(first.with_stem(f"{first.stem}-{number}") for number in range(1, count))]


def shortened(text: str) -> str:
    """The start of a text, as a name for it."""
    return text if len(text) <= 24 else f"{text[:23]}…"


def plain_console() -> Console:
    """A console whose lines stay whole where no terminal limits their width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)

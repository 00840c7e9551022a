"""What the codec's process can be told."""

import pytest

from services.codec.settings import CodecSettings
from services.runtime.settings import load


def test_flags_and_defaults() -> None:
    settings = load(CodecSettings, ["--checkpoint", "random:tiny", "--port", "5003", "--slots", "3"], stage="codec")
    assert (settings.checkpoint, settings.port, settings.slots) == ("random:tiny", 5003, 3)
    assert (settings.device, settings.queue_limit, settings.threads) == ("auto", 16, None)


@pytest.mark.parametrize("argv", [[], ["--checkpoint", "x", "--slots", "0"], ["--checkpoint", "x", "--dtype", "y"]])
def test_what_does_not_fit_ends_the_process_with_a_sentence(argv, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        load(CodecSettings, argv, stage="codec")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("codec: ")

"""Voice prompts whose prefill is kept."""

from collections import OrderedDict

from torch import Tensor


class VoiceCache:
    """Keys and values of voice prompts by what they are made of; the one used longest ago goes when room is short.

    In use only on the device thread. `limit_bytes` 0 keeps nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._columns: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._columns)

    def get(self, voice: bytes) -> Tensor | None:
        """The columns of a voice prompt, as `KvCache.read` gave them, if they are kept."""
        columns = self._columns.get(voice)
        if columns is not None:
            self._columns.move_to_end(voice)
        return columns

    def put(self, voice: bytes, columns: Tensor) -> None:
        """Keeps a voice prompt's columns, if they fit at all."""
        if columns.nbytes > self.limit_bytes or voice in self._columns:
            return
        while self.held_bytes + columns.nbytes > self.limit_bytes:
            _, oldest = self._columns.popitem(last=False)
            self.held_bytes -= oldest.nbytes
        self._columns[voice] = columns
        self.held_bytes += columns.nbytes

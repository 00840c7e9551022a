"""How much silence a listener hears that is not the reply's."""


class UnderRun:
    """The greatest shortfall of a player that starts at a reply's first packet: how late a packet was at most.

    A player that waited for one packet is that much later for the next, so it is all the silence there is.
    """

    def __init__(self) -> None:
        self.packet_count = 0
        self.seconds = 0.0
        self._began_at = 0.0
        self._sent_seconds = 0.0

    def send(self, now: float, sound_seconds: float) -> None:
        """A packet of this much sound has left at `now`."""
        if self.packet_count == 0:
            self._began_at = now
        self.seconds = max(self.seconds, now - self._began_at - self._sent_seconds)
        self._sent_seconds += sound_seconds
        self.packet_count += 1

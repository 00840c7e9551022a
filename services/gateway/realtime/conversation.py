"""The items of a conversation, in order."""

from collections.abc import Iterator

from client.message import Message, Role
from services.gateway.errors import invalid
from services.gateway.realtime.items import Item

KEPT_SOUND_BYTES = 16 * 1024 * 1024
"""Most that a conversation keeps of what the user said: 349 s of PCM. What is oldest is forgotten."""

TOLD_BYTES = 12 * 1024 * 1024
"""Most that the mesh is told of a conversation that it takes up again; it takes 16 MiB in one message."""

ITEM_LIMIT = 10_000
"""Most items of a conversation to which a client may add one."""


class Conversation:
    """The truth about what was said; the mesh's own memory is a copy of it that can be made again."""

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @property
    def last(self) -> Item | None:
        """The last item."""
        return self._items[-1] if self._items else None

    @property
    def is_full(self) -> bool:
        """Whether a client may add no more."""
        return len(self._items) >= ITEM_LIMIT

    @property
    def unanswered(self) -> list[Item]:
        """What the user said since the last reply, and what was said before it without an answer."""
        return [item for item in self._items if item.role is Role.USER and not item.is_answered]

    @property
    def instructions(self) -> str:
        """What system messages say."""
        return "\n\n".join(item.typed_text for item in self._items if item.role is Role.SYSTEM)

    def find(self, item_id: str) -> Item | None:
        """The item of this id."""
        return next((item for item in self._items if item.id == item_id), None)

    def before(self, item: Item) -> str | None:
        """The id of the item before this one."""
        index = self._items.index(item)
        return self._items[index - 1].id if index else None

    def is_last(self, item: Item) -> bool:
        """Whether nothing follows it."""
        return self._items[-1] is item

    def add(self, item: Item, previous_item_id: str | None = None) -> None:
        """Adds an item after another one: by default the last, and before all others after `root`; raises Refusal."""
        if self.find(item.id) is not None:
            raise invalid(f"there is an item {item.id!r} already", "item.id", "item_create_duplicate_item_id")
        index = len(self._items)
        if previous_item_id == "root":
            index = 0
        elif previous_item_id is not None:
            if (previous := self.find(previous_item_id)) is None:
                param = "previous_item_id"
                raise invalid(f"there is no item {previous_item_id[:80]!r}", param, "item_create_invalid_item_id")
            index = self._items.index(previous) + 1
        self._items.insert(index, item)
        if item.role is Role.ASSISTANT:
            for earlier in self._items[:index]:
                earlier.is_answered = True
        elif any(later.role is Role.ASSISTANT for later in self._items[index + 1 :]):
            item.is_answered = True
        self._forget_sound()

    def remove(self, item: Item) -> None:
        """Removes an item."""
        self._items.remove(item)

    def leave_unanswered(self) -> None:
        """What the user said last is to be answered (again), if no reply follows it."""
        for item in reversed(self._items):
            if item.role is Role.ASSISTANT:
                return
            item.is_answered = False

    def answer(self) -> None:
        """What the user said is answered."""
        for item in self._items:
            item.is_answered = True

    def history(self, without: list[Item]) -> list[Message]:
        """The conversation as the mesh is told it, but for these items, as far back as it can be told."""
        told: list[Message] = []
        size_bytes = 0
        for item in reversed(self._items):
            if item.role is Role.SYSTEM or item in without:
                continue
            messages = item.messages()
            size_bytes += sum(_size_bytes(message) for message in messages)
            if size_bytes > TOLD_BYTES:
                break
            told = messages + told
        return told

    def _forget_sound(self) -> None:
        size_bytes = sum(item.sound_bytes for item in self._items)
        for item in self._items:
            if size_bytes <= KEPT_SOUND_BYTES:
                return
            size_bytes -= item.sound_bytes
            item.forget_sound()


def _size_bytes(message: Message) -> int:
    """About what a message takes: text in UTF-8, sound in 16 bits."""
    return sum(len(part.encode()) if isinstance(part, str) else 2 * len(part) for part in message.parts)

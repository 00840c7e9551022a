"""The voices that OpenAI's clients name without being told to."""

OPENAI_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
"""Where the mesh has no voice of such a name, its default answers."""

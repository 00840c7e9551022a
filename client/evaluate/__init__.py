"""`chroma-mesh evaluate`: asks a mesh spoken questions and judges what it says, from WAV to WAV."""

"""The front of the mesh: owns conversations and relays every reply through the three stages."""

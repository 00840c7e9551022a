"""What the three stages that hold a model share: settings, their process, and an engine's refusals on the wire."""

"""Chat completions: a conversation comes whole, and one reply goes back."""

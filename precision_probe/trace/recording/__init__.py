"""What the recorder is made of: how arrays are laid out, what it goes on from, and what must not be interrupted."""

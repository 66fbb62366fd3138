"""What the verb audit does beside running a model: its output, its verdict, and its workers."""

"""The one train loop, its checkpoints and its named random streams."""

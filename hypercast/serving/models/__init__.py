"""Models as trained, loaded for scoring, in sets that fit together and are exchanged whole."""

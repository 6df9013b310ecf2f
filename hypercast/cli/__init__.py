"""The command line: one file a group of commands. Long jobs show progress, every command has ``--json``."""

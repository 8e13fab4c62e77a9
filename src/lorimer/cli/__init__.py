"""The command line: one file per noun. Commands parse, call one function of a room, print."""

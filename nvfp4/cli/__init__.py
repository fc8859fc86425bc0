"""The command line: options read, a task carried out, results and problems printed."""

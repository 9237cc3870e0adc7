"""The command line. Everything heavier than typer is imported inside the commands, so that --help is instant."""

"""The command line, thin: parse -> settings -> stage -> render.  Only this package imports Typer or Rich."""

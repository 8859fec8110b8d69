"""The command that shows a corpus, a store or a run in the browser."""

import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from dsgen.cli.command import Command
from dsgen.cli.options import refuse_ignored
from dsgen.cli.results import Reply, as_dict, megabytes, plural, to_json
from dsgen.parallel.signals import exit_code, stopped_by

_SHOWN = "A corpus, a run, or a store in a folder or at a URL."


def view(
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help=_SHOWN)] = "shards",
    port: Annotated[int, typer.Option(help="The port to listen on, of this machine only; 0 is a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Write the page as static files to this folder instead, with the data, for any web server or bucket."
        ),
    ] = None,
    data_url: Annotated[
        str | None, typer.Option(help="With --export: write the page alone; the store is at this http(s) address.")
    ] = None,
) -> Reply | None:
    """Look at a corpus, a store or a run in the browser.

    Serves one page on this machine, and prints its address. Ctrl-C ends it, with exit code 0. Whoever can use this
    machine can open the page while it runs. From another machine: ssh -L PORT:127.0.0.1:PORT HOST.
    """
    if export is not None:
        from dsgen.views.static import export_page

        refuse_ignored(context, "the page is exported (--export)", "port", "browser")
        result = export_page(path, export, data_url=data_url)
        text = (
            f"{result.out}: {plural(result.files, 'file')}, {megabytes(result.bytes)}, {result.already_there:,} "
            "already existed; put the folder on a web server or into a bucket"
        )
        return Reply(text, as_dict(result))
    refuse_ignored(context, "the page is served", "data_url", remedy="leave it out, or add --export FOLDER")
    from dsgen.views.view import open_browser
    from dsgen.views.view import view as show

    def ready(address: str) -> None:
        with redirect_stdout(sys.__stdout__):  # it is the result, and comes before the end
            typer.echo(
                to_json({"path": path, "url": address}) if context.params.get("as_json") else f"{path}: {address}"
            )
            sys.stdout.flush()
        if browser and not open_browser(address):
            typer.echo("note: no browser was opened; open the address in one. Ctrl-C ends the server", err=True)

    try:
        show(path, ready, port=port)
    except KeyboardInterrupt:
        if stopped_by() == signal.SIGTERM:  # Ctrl-C is how one ends a server
            raise typer.Exit(exit_code(signal.SIGTERM)) from None
    return None


VIEW = Command(
    "view",
    view,
    (
        "dsgen view",
        "dsgen view corpus",
        "dsgen view run --port 8000 --no-browser",
        "dsgen view s3://bucket/shards",
        "dsgen view shards --export page",
    ),
    endpoint=True,
)

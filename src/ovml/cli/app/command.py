"""`ovml app`: a web page that ranks labels for an image."""

from __future__ import annotations

import argparse
import re
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path

from ovml.cli.app.pictures import Album
from ovml.cli.app.server import address, build_server, listen
from ovml.cli.app.uploads import EXAMPLES, Uploads, upload_folder
from ovml.cli.command import (
    SCORINGS,
    Command,
    add_label_options,
    add_model_options,
    add_scoring_option,
    at_least,
    check_extra,
    check_needs_no_fit,
    chosen_labels,
)
from ovml.utils.console import notice
from ovml.utils.process import starting


class App(Command):
    """Serves the page until it is interrupted."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add labels, model, address and limits."""
        add_label_options(parser)
        add_model_options(parser, device=True, precision=True)
        add_scoring_option(parser)
        parser.add_argument(
            "--images",
            type=Path,
            metavar="FOLDER",
            help="show the images of a folder as a gallery with their best labels; nothing in it is changed",
        )
        parser.add_argument(
            "--host",
            default="127.0.0.1",
            help="address to listen at; 0.0.0.0 for all (default: 127.0.0.1, this machine only)",
        )
        parser.add_argument(
            "--port", type=at_least(0, 65535), default=7860, help="0 for any that is free (default: 7860)"
        )
        parser.add_argument(
            "--allowed-host",
            type=_host_name,
            action="append",
            default=[],
            metavar="NAME",
            help="another host name that the page may be opened at, such as a proxy's; repeatable",
        )
        parser.add_argument(
            "--max-labels", type=at_least(1), default=1000, metavar="N", help="labels that may be typed (default: 1000)"
        )
        parser.add_argument(
            "--max-upload-mb",
            type=at_least(1),
            default=10,
            metavar="MB",
            help="largest uploaded image file (default: 10)",
        )
        parser.add_argument("--no-browser", action="store_true", help="only print the address")

    def run(self, args: argparse.Namespace) -> None:
        """Listen first, so that a taken port is reported before the model loads; then serve."""
        check_needs_no_fit(args.scoring)
        labels = chosen_labels(args)
        check_extra("app", "gradio")
        with listen(args.host, args.port) as taken, upload_folder() as folder:
            album = None if args.images is None else Album(args.images)

            with starting():
                from ovml.cli.app.page import build_page
                from ovml.cli.app.ranking import Ranker
                from ovml.cli.app.start import start
                from ovml.cli.app.visit import Events
                from ovml.cli.models import chosen_model

                model = chosen_model(args)
            typed = args.labels is not None and labels is not None and len(labels) <= args.max_labels
            first = start(model, args.model, album, folder / EXAMPLES, labels, args.vocabulary, typed)
            ranker = Ranker(model, args.prompt, args.scoring or SCORINGS[0])
            events = Events(ranker, first.lists, first.album, args.max_labels)
            page = build_page(events, args.model, first.typed, first.chosen)
            if args.host not in ("127.0.0.1", "localhost", "::1"):
                notice(f"everyone who reaches {args.host} can use the page; there is no password")
            print(f"ovml: {address(taken)} (Ctrl-C ends it)", flush=True)
            if not args.no_browser:
                threading.Thread(target=webbrowser.open, args=[address(taken)], daemon=True).start()
            uploads = Uploads(folder, args.max_upload_mb * 2**20)
            limits = (args.host, args.allowed_host, args.max_labels)
            server = build_server(page, taken, uploads, *limits, events.thumbnails)
            with suppress(KeyboardInterrupt):  # the server may or may not pass it on
                server.run(sockets=[taken])
            notice("ended")


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:]+", text.lower()):
        raise argparse.ArgumentTypeError(f"expected a host name without http:// and port, got {text!r}")
    return text.lower()

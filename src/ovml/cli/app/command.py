"""`ovml app`: a web page that ranks labels for an image."""

from __future__ import annotations

import argparse
import re
import threading
import webbrowser
from contextlib import suppress

from ovml.cli.app.server import address, build_server, listen
from ovml.cli.app.uploads import EXAMPLES, Uploads, upload_folder
from ovml.cli.command import Command, add_label_options, add_model_options, at_least, check_extra, chosen_labels
from ovml.utils.console import notice
from ovml.utils.resources import DEMO


class App(Command):
    """Serves the page until it is interrupted."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add labels, model, address and limits."""
        add_label_options(parser)
        add_model_options(parser, device=True)
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
            "--max-upload-mb", type=at_least(1), default=10, metavar="MB", help="largest image file (default: 10)"
        )
        parser.add_argument("--no-browser", action="store_true", help="only print the address")

    def run(self, args: argparse.Namespace) -> None:
        """Listen first, so that a taken port is reported before the model loads; then serve."""
        labels = chosen_labels(args)
        check_extra("app", "gradio")
        with listen(args.host, args.port) as taken, upload_folder() as folder:
            from ovml.cli.app.page import build_page
            from ovml.cli.app.ranking import Ranker, vocabularies
            from ovml.cli.models import chosen_model
            from ovml.data.synthetic.scenes import LABELS

            model = chosen_model(args)
            lists = vocabularies(model, args.model, labels)
            own = model.vocabulary
            drawn = args.model == DEMO or (own is not None and set(own.names) <= set(LABELS))
            examples = folder / EXAMPLES if drawn else None
            page = build_page(Ranker(model, args.prompt), lists, args.max_labels, args.model, examples)
            if args.host not in ("127.0.0.1", "localhost", "::1"):
                notice(f"everyone who reaches {args.host} can use the page; there is no password")
            print(f"ovml: {address(taken)} (Ctrl-C ends it)", flush=True)
            if not args.no_browser:
                threading.Thread(target=webbrowser.open, args=[address(taken)], daemon=True).start()
            uploads = Uploads(folder, args.max_upload_mb * 2**20)
            server = build_server(page, taken, uploads, args.host, args.allowed_host, args.max_labels)
            with suppress(KeyboardInterrupt):  # the server may or may not pass it on
                server.run(sockets=[taken])
            notice("ended")


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:]+", text.lower()):
        raise argparse.ArgumentTypeError(f"expected a host name without http:// and port, got {text!r}")
    return text.lower()

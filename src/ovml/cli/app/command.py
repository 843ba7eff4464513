"""`ovml app`: a web page that ranks labels for a picture."""

from __future__ import annotations

import argparse
import threading
import webbrowser
from contextlib import suppress
from importlib.util import find_spec

from ovml.cli.options import Parser, add_device_option, add_scoring_options, at_least, chosen_labels, on_device
from ovml.encoders.checkpoints import DEMO
from ovml.utils.console import notice
from ovml.utils.errors import UserError


def app(argv: list[str]) -> None:
    """Serve the page until it is interrupted."""
    args = make_parser().parse_args(argv[1:])
    given = chosen_labels(args)

    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio; pip install 'ovml[app]'")

    from ovml.cli.app.address import address, listen

    with listen(args.host, args.port) as taken:
        import transformers

        from ovml.cli.app.page import build_page
        from ovml.cli.app.ranking import Ranker, vocabularies
        from ovml.cli.app.server import serve
        from ovml.data.synthetic.scenes import LABELS
        from ovml.inference.tagger import load_model

        transformers.utils.logging.disable_progress_bar()
        model = on_device(load_model(args.model), args.device)
        lists = vocabularies(model, args.model, given)
        examples = args.model == DEMO or (model.vocabulary is not None and set(model.vocabulary.names) <= set(LABELS))
        page = build_page(Ranker(model, args.prompt), lists, args.max_labels, args.model, examples)
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            notice(f"all who reach {args.host} can use the page; there is no password")
        print(f"ovml: {address(taken)} (Ctrl-C ends it)", flush=True)
        if not args.no_browser:
            threading.Thread(target=webbrowser.open, args=[address(taken)], daemon=True).start()
        with suppress(KeyboardInterrupt):  # whether Ctrl-C comes through depends on what the server was at
            serve(page, taken, args.max_upload_mb)
        notice("ended")


def make_parser() -> argparse.ArgumentParser:
    """The options of `ovml app`."""
    parser = Parser(prog="ovml app", description="Open a web page that ranks labels for a picture.")
    add_scoring_options(parser)
    add_device_option(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all (default: 127.0.0.1, this machine)"
    )
    parser.add_argument("--port", type=_port, default=7860, help="0 for any that is free (default: 7860)")
    parser.add_argument(
        "--max-labels", type=at_least(1), default=1000, metavar="N", help="labels that may be typed (default: 1000)"
    )
    parser.add_argument(
        "--max-upload-mb", type=at_least(1), default=10, metavar="MB", help="largest picture file (default: 10)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port, 0 to 65535, got {text!r}")
    return int(text)

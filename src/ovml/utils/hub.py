"""Names on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import socket
from difflib import get_close_matches
from urllib.parse import urlsplit
from urllib.request import getproxies

from ovml.utils.errors import UserError
from ovml.utils.resources import DEMO

LONGEST = 96
"""Characters of a name on the Hub."""
SECONDS = 5
"""How long the Hub may take to answer; its library would try again for half a minute."""


def check_hub_name(name: str) -> None:
    """Check that a checkpoint is here, or can be asked for: without a network the Hub's library tries for long.

    Args:
        name: A path, or a name on the Hub.

    Raises:
        UserError: It is neither a path here nor in the form of a name on the Hub; or it is not in the Hub's cache, and
            the Hub cannot be reached.
    """
    looks_right = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII) and len(name) <= LONGEST
    if name == DEMO or not looks_right or os.path.exists(name):
        return  # who reads a path says what is wrong with it
    from huggingface_hub import constants

    cached = os.path.join(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
    if os.path.isdir(cached):
        return
    where = f"{name}: no such checkpoint here"
    if "/" not in name:
        meant = f"did you mean {DEMO}? or " if get_close_matches(name, [DEMO], cutoff=0.7) else ""
        raise UserError(
            f"{where}; {meant}give a folder, a name on the Hugging Face Hub such as openai/clip-vit-base-patch16, or "
            f"{DEMO!r}, which is part of ovml"
        )
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), SECONDS).close()
    except OSError as error:
        raise UserError(
            f"{where}, and the Hugging Face Hub cannot be reached ({hub.hostname}: {error.strerror or error}); check "
            f"the name and the network, give a local folder, or use {DEMO!r}, which is part of ovml"
        ) from error

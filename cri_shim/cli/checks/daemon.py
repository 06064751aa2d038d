"""Checks whether the running daemon has operations that hang."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.cli.checks.row import Row, ok, warning
from cri_shim.cli.output import counted
from cri_shim.cli.status_rows import waiting_text
from cri_shim.errors import CriShimError, UnavailableError
from cri_shim.operations import SLOW_S
from cri_shim.rpc.client import Client, errors_of

if TYPE_CHECKING:
    from cri_shim.config import Config

ANSWER_S = 3.0


def operations(config: Config) -> Row:
    """Ask the daemon for operations older than a minute, and the steps they wait for. Blocks."""
    name = "operations"
    path = next((url.socket_path for url in config.listen if url.socket_path is not None), None)
    if path is None:
        return ok(name, "not checked: no unix socket is configured")
    try:
        with Client(path) as client, errors_of("asking the daemon"):
            answer = client.admin.Operations(admin.OperationsRequest(), timeout=ANSWER_S)
    except UnavailableError:
        return ok(name, "no daemon runs")
    except CriShimError as error:
        return warning(
            name, str(error), "see the daemon's log; if it hangs, restart it: pods keep running"
        )
    slow = [each for each in answer.operations if each.seconds > SLOW_S]
    if not slow:
        return ok(name, f"{len(answer.operations)} under way, none for more than a minute")
    first = slow[0]
    return warning(
        name,
        f"{counted(len(slow), 'operation')} for more than a minute; the first, of "
        f"{first.object[:13] or first.subject}: {waiting_text(first)}",
        "`cri-shim status` shows all; check what their steps wait for",
    )

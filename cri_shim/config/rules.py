"""Checks rules between configuration keys. Pure.

Each rule has the keys that it reads, and yields problems. It is skipped if one of these keys has a problem already, so
that no mistake is reported twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.config.decode import Place, Problem, format_place, show
from cri_shim.config.model import CgroupDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cri_shim.config.model import Config, TlsSettings

    Rule = Callable[[Config], Iterator[Problem]]


def find_problems(config: Config, known: Sequence[Problem] = ()) -> list[Problem]:
    """The problems between keys; `known` are the problems that decoding found."""
    touched = [problem.place for problem in known]
    return [
        problem
        for reads, rule in _RULES
        if not any(place[: len(read)] == read for place in touched for read in reads)
        for problem in rule(config)
    ]


def _directories_are_apart(config: Config) -> Iterator[Problem]:
    root, state = config.root, config.state
    for name, path in (("root", root), ("state", state)):
        if str(path) == "/":
            yield Problem((name,), 'is the root directory ("/"), allowed: any other directory')
    if root == state or root in state.parents or state in root.parents:
        yield Problem(
            ("state",),
            f"is inside root, or contains it ({show(str(state))}), allowed: a directory outside {root}",
        )


def _tls_is_complete(tls: TlsSettings, place: Place, *, mutual: bool) -> Iterator[Problem]:
    have = {"cert": tls.cert, "key": tls.key, "client_ca": tls.client_ca}
    if not any(have.values()):
        return
    for name, path in have.items():
        if path is None and (mutual or name != "client_ca"):
            others = " and ".join(other for other, value in have.items() if value)
            yield Problem(
                (*place, name), f'is not set (""), allowed: a path, since {others} is set'
            )


def _listener_tls_is_mutual(config: Config) -> Iterator[Problem]:
    yield from _tls_is_complete(config.tls, ("tls",), mutual=True)


def _streaming_tls_is_whole(config: Config) -> Iterator[Problem]:
    yield from _tls_is_complete(config.streaming.tls, ("streaming", "tls"), mutual=False)


def _tcp_needs_tls(config: Config) -> Iterator[Problem]:
    for index, url in enumerate(config.listen):
        if url.tcp_address is not None and not config.tls.enabled:
            yield Problem(
                ("listen", index),
                f"requires TLS ({show(url)}): set tls.cert, tls.key and tls.client_ca, or use unix://",
            )


def _ports_are_apart(config: Config) -> Iterator[Problem]:
    taken: dict[tuple[str, int], str] = {}
    if config.streaming.port:
        taken[config.streaming.address, config.streaming.port] = "streaming.port"
    wanted: list[tuple[Place, tuple[str, int]]] = []
    if config.metrics.address is not None:
        address = config.metrics.address
        wanted.append((("metrics", "address"), (address.host, address.port)))
    for index, url in enumerate(config.listen):
        if (listener := url.tcp_address) is not None:
            wanted.append((("listen", index), (listener.host, listener.port)))
    for place, wish in wanted:
        host, port = wish
        if wish in taken:
            yield Problem(
                place,
                f"is also the address of {taken[wish]} ({host}:{port}), allowed: another address or port",
            )
        elif port:
            taken[wish] = format_place(place)


def _default_handler_exists(config: Config) -> Iterator[Problem]:
    runtime = config.runtime
    if runtime.default_handler not in runtime.handlers:
        yield Problem(
            ("runtime", "default_handler"),
            f"is not a configured handler ({show(runtime.default_handler)}), "
            f"allowed: {', '.join(runtime.handlers)}",
        )


def _cgroup_parent_fits_driver(config: Config) -> Iterator[Problem]:
    parent = config.sandbox.cgroup_parent
    if parent is None:
        return
    place = ("sandbox", "cgroup_parent")
    if ".." in parent.split("/"):
        yield Problem(place, f"contains .. ({show(parent)}), allowed: the name of a cgroup")
    elif config.cgroup_driver is CgroupDriver.SYSTEMD and not parent.endswith(".slice"):
        yield Problem(
            place, f"is not a slice ({show(parent)}), allowed with systemd: a name like pods.slice"
        )
    elif config.cgroup_driver is CgroupDriver.CGROUPFS and not parent.startswith("/"):
        yield Problem(
            place,
            f"is not an absolute path ({show(parent)}), allowed with cgroupfs: a path like /pods",
        )


def _ulimits_fit(config: Config) -> Iterator[Problem]:
    for name, limit in config.security.default_ulimits.items():
        place = ("security", "default_ulimits", name)
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            yield Problem(
                (*place, "soft"), f"is above hard ({limit.soft}), allowed: at most {limit.hard}"
            )
        if name == "nofile" and -1 in (limit.soft, limit.hard):
            yield Problem(
                place,
                "is unlimited (-1), allowed: numbers, since the kernel limits open files to fs.nr_open",
            )


def _samples_go_somewhere(config: Config) -> Iterator[Problem]:
    if config.tracing.sampling_per_million and config.tracing.endpoint is None:
        yield Problem(
            ("tracing", "endpoint"),
            'is not set (""), allowed: a URL, since sampling_per_million is set',
        )


_RULES: tuple[tuple[tuple[Place, ...], Rule], ...] = (
    ((("root",), ("state",)), _directories_are_apart),
    ((("tls",),), _listener_tls_is_mutual),
    ((("streaming", "tls"),), _streaming_tls_is_whole),
    ((("listen",), ("tls",)), _tcp_needs_tls),
    ((("listen",), ("metrics",), ("streaming",)), _ports_are_apart),
    ((("runtime",),), _default_handler_exists),
    ((("sandbox", "cgroup_parent"), ("cgroup_driver",)), _cgroup_parent_fits_driver),
    ((("security", "default_ulimits"),), _ulimits_fit),
    ((("tracing",),), _samples_go_somewhere),
)

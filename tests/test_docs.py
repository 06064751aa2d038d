"""The pages for people, held against the code: what they name exists, what they quote is said, what they show is valid.

Each test reads every page (`PAGES`) and collects one kind of claim: links, commands and their options, configuration,
metrics, modules, paths, messages, documents that an operator would copy, and bounds. A page that names what is gone
fails, and so does a metric or a command that no page mentions.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import tomllib
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml
from google.protobuf.json_format import ParseDict

from cri_shim import kernel_call, quoting, slots
from cri_shim.__main__ import COMMANDS, main
from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.cni.conf import parse_conflist
from cri_shim.cni.template import render_template
from cri_shim.config import load_config
from cri_shim.config.model import Config
from cri_shim.config.render import to_tree
from cri_shim.config.schema import keys_of
from cri_shim.daemon import lifecycle
from cri_shim.image import archive, manifest
from cri_shim.image.registry.hosts import parse_hosts
from cri_shim.image.unpack import protocol
from cri_shim.metrics import REGISTRY
from cri_shim.oci import attach_pipes
from cri_shim.oci.spec import mounts
from cri_shim.oci.spec.hooks import parse_hook_file
from cri_shim.rpc import request_budget, request_limits, status
from cri_shim.rpc.handlers import python_name
from cri_shim.rpc.image_service import ImageService
from cri_shim.rpc.runtime_service import RuntimeService
from cri_shim.sandbox import exit_handling, launch, list_bounds
from cri_shim.sandbox.exec import process, sync
from cri_shim.sandbox.network import annotations as network_annotations
from cri_shim.sandbox.network import host_ports, reconciler
from cri_shim.sandbox.spec import pod_files
from cri_shim.streaming import newcomers, port_forward, remote_command, server, tickets
from cri_shim.streaming.wire import http1, spdy

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cri_shim"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A fenced block: its language, its text and the page."""

    page: str
    language: str
    text: str


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def blocks() -> list[Block]:
    return [
        Block(named(page), language, text)
        for page in PAGES
        for language, text in _FENCE.findall(page.read_text())
    ]


@cache
def inline() -> list[tuple[str, str]]:
    """(page, code) of each span of code in running text and tables."""
    return [
        (named(page), " ".join(code.split()))
        for page in PAGES
        for code in _INLINE.findall(_FENCE.sub("", page.read_text()))
    ]


def code() -> Iterator[tuple[str, str]]:
    """(page, line) of everything that is set as code."""
    for block in blocks():
        for line in block.text.splitlines():
            yield block.page, line
    yield from inline()


# -- links ---------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and GitLab give a page's headings."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_leads_somewhere() -> None:
    dead = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text())):
            if re.match(r"https?://", target):
                continue
            file, _, anchor = target.partition("#")
            leads_to = (page.parent / file).resolve() if file else page
            if not leads_to.exists() or (anchor and anchor not in anchors(leads_to)):
                dead.append(f"{named(page)}: {target}")
    assert not dead, "\n".join(dead)


def test_every_page_of_docs_is_in_the_readmes_list() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [named(page) for page in PAGES if f"]({named(page)})" not in readme]
    assert missing == ["README.md"]


# -- commands ------------------------------------------------------------------------------------


@cache
def help_of(*words: str) -> str:
    out = StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue()


def own_commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of each `cri-shim …`, as far as the next pipe or comment."""
    for page, line in code():
        for words in re.findall(r"(?:^|(?<=[\s(/]))cri-shim ([^|;`#)]*)", line):
            if re.match(r"(-|[a-z])", words):
                yield page, words.split()


def subcommand(words: list[str]) -> tuple[str, ...]:
    """The words that choose a parser: a command, and a subcommand where it has some."""
    chosen: list[str] = []
    for word in words:
        listed = re.search(rf"^ +{re.escape(word)}  ", help_of(*chosen), re.MULTILINE)
        if not re.fullmatch(r"[a-z-]+", word) or not listed:
            break
        chosen.append(word)
    return tuple(chosen)


def test_every_command_and_option_of_ours_exists() -> None:
    wrong = []
    seen = set()
    for page, words in own_commands():
        chosen = subcommand(words)
        seen.add(chosen[:1])
        line = " ".join(words)
        if not chosen and words and not words[0].startswith("-"):
            # Only in a sentence about the program, which a message quotes.
            if words[0] in {"is", "has", "does"}:
                continue
            wrong.append(f"{page}: cri-shim {line}: no such command")
        wrong += [
            f"{page}: cri-shim {line}: no option {option}"
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)
            if not re.search(rf"(?<![\w-]){option}(?![\w-])", help_of(*chosen))
        ]
    assert not wrong, "\n".join(wrong)
    assert {name for (name,) in seen - {()}} == set(COMMANDS), "a command that no page mentions"


def test_every_script_and_its_options_exist() -> None:
    wrong = []
    for page, line in code():
        for script, rest in re.findall(r"((?:tests|deploy|api)/[\w/]+\.sh)([^|;`#]*)", line):
            path = ROOT / script
            text = path.read_text() if path.exists() else ""
            own = rest.split("tests/guest/inside.sh")[0]
            options = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", own)
            wrong += [f"{page}: {line.strip()}: {script}"] * (not path.exists())
            wrong += [
                f"{page}: {script} has no {option}" for option in options if option not in text
            ]
    assert not wrong, "\n".join(wrong)


def test_every_module_that_is_run_and_its_options_exist() -> None:
    wrong = []
    for page, line in code():
        for module, rest in re.findall(r"-m ((?:tests|cri_shim)[\w.]*)([^|;`#]*)", line):
            spec = importlib.util.find_spec(module)
            if spec is None or spec.origin is None:
                wrong.append(f"{page}: no module {module}")
                continue
            # Modules of one folder share options.
            text = "\n".join(p.read_text() for p in Path(spec.origin).parent.glob("*.py"))
            options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)
            wrong += [
                f"{page}: {module} has no {option}"
                for option in options
                if f'"{option}"' not in text
            ]
    assert not wrong, "\n".join(wrong)


@cache
def everything() -> str:
    """Scripts, units and Python of the tree, for what is named there only."""
    files = [
        *(ROOT / "deploy").rglob("*"),
        *(ROOT / "tests").rglob("*.sh"),
        *(ROOT / "tests").rglob("*.py"),
        *PACKAGE.rglob("*.py"),
    ]
    return "\n".join(f.read_text() for f in files if f.is_file() and f != Path(__file__))


def test_every_variable_of_the_environment_is_read() -> None:
    unread = [
        f"{page}: {name}"
        for page, line in code()
        for name in re.findall(r"\b(?:CRI_SHIM|GUEST|BARE_ROOT)_[A-Z_]*[A-Z]\b", line)
        if not re.search(rf"\b{name}\b", everything())
    ]
    assert not unread, "\n".join(unread)


def test_what_the_unit_is_said_to_set_it_sets() -> None:
    unit = (ROOT / "deploy/systemd/cri-shim.service").read_text().splitlines()
    keys = {line.partition("=")[0] for line in unit if "=" in line}
    wrong = [
        f"{page}: {text}"
        for page, text in inline()
        if (match := re.fullmatch(r"(\w+)(?:=(.*))?", text)) and match[1] in keys
        if match[2] is not None and text not in unit
    ]
    assert not wrong, "\n".join(wrong)


# -- calls ---------------------------------------------------------------------------------------


def test_the_calls_that_are_not_served_are_listed() -> None:
    unserved = {
        method.name
        for service, served in (("RuntimeService", RuntimeService), ("ImageService", ImageService))
        for method in api_pb2.DESCRIPTOR.services_by_name[service].methods
        if not hasattr(served, python_name(method.name))
    }
    page = (ROOT / "docs/operating.md").read_text()
    table = page.split("answer `Unimplemented`:")[1].split("\n\n")[1]
    assert set(re.findall(r"`(\w+)`", table)) == unserved


# -- configuration -------------------------------------------------------------------------------


def default_tree() -> dict[str, object]:
    return to_tree(Config())


def has_key(dotted: str) -> bool:
    """Whether the configuration has it: `runtime.handlers.NAME.path` with any name."""
    section: type | None = Config
    anything = False
    for word in dotted.split("."):
        if anything:  # the name of an entry
            anything = False
            continue
        if section is None:
            return False
        key = next((key for key in keys_of(section) if key.name == word), None)
        if key is None:
            return False
        anything = key.entry_section is not None
        section = key.section or key.entry_section
    return True


def test_every_key_that_is_named_exists() -> None:
    sections = "|".join(default_tree())
    wrong = [
        f"{page}: {text}"
        for page, text in inline()
        if (match := re.match(rf"((?:{sections})(?:\.[A-Za-z_]\w*)+)(?:[:=]|$)", text))
        and not match[1].startswith("runtime.v1")  # CRI's services
        and not has_key(match[1])
    ]
    assert not wrong, "\n".join(wrong)


def test_every_configuration_that_is_shown_is_valid(tmp_path: Path) -> None:
    shown = []
    for number, block in enumerate(blocks()):
        if block.language != "yaml":
            continue
        tree = yaml.safe_load(block.text)
        if isinstance(tree, dict) and tree.keys() <= default_tree().keys():
            file = tmp_path / f"{number}.yaml"
            file.write_text(block.text)
            load_config(file)
            shown.append(block.page)
    assert "README.md" in shown


def test_every_name_of_a_yaml_block_of_others_is_theirs() -> None:
    """What is not our configuration is a kubelet's, kubeadm's, Kubernetes' or crictl's."""
    others = [
        tree
        for block in blocks()
        if block.language == "yaml"
        for tree in yaml.safe_load_all(block.text)
        if not tree.keys() <= default_tree().keys()
    ]
    assert all("apiVersion" in tree or "runtime-endpoint" in tree for tree in others)


# -- metrics -------------------------------------------------------------------------------------


def metric_names() -> set[str]:
    """As Prometheus shows them, but for the parts of a histogram."""
    suffix = {"counter": "_total", "info": "_info"}
    return {
        family.name + suffix.get(family.type, "")
        for family in REGISTRY.collect()
        if family.name.startswith("cri_shim_")
    }


def test_every_metric_that_is_named_exists_and_every_one_is_named() -> None:
    told = {
        (page, name)
        for page, line in code()
        for name in re.findall(r"\bcri_shim_[a-z_]+\b", line)
        if not (ROOT / name).exists() and "ghp_" not in name
    }
    wrong = sorted(f"{page}: {name}" for page, name in told if name not in metric_names())
    assert not wrong, "\n".join(wrong)
    in_table = {name for page, name in told if page == "docs/operating.md"}
    assert not metric_names() - in_table, "a metric that docs/operating.md does not explain"


# -- modules and paths ---------------------------------------------------------------------------


def test_every_path_of_the_checkout_exists() -> None:
    wrong = [
        f"{page}: {path}"
        for page, line in code()
        for path in re.findall(
            r"(?<![\w/.~-])((?:tests|deploy|docs|api|cri_shim)/[\w./*-]*[\w*])", line
        )
        if not any(ROOT.glob(path)) and "VERSION" not in path
    ]
    assert not wrong, "\n".join(wrong)


def test_every_path_that_a_script_names_exists() -> None:
    """Those of tests in the first place: a renamed module must not drop out of the guest's or the bench's runs."""
    wrong = []
    for script in [*ROOT.glob("tests/**/*.sh"), *ROOT.glob("deploy/*.sh")]:
        words = re.findall(
            r"(?<![\w/.$-])(?:tests|deploy|cri_shim)/[\w./{},-]*[\w}]", script.read_text()
        )
        expanded = subprocess.run(
            ["bash", "-c", f"printf '%s\\n' {' '.join(words)}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        wrong += [f"{named(script)}: {path}" for path in expanded if not (ROOT / path).exists()]
    assert not wrong, "\n".join(wrong)


def test_every_module_that_architecture_names_exists() -> None:
    """`sandbox/exec/sync`, `exec/sync` under sandbox/, `streaming/{a,b}`, `cni/spec/*`."""
    parents = [PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_dir())]
    wrong = []
    for page, text in inline():
        if page != "ARCHITECTURE.md" or not re.fullmatch(r"[a-z_]+(/[\w{},*]+)+(\.py)?/?", text):
            continue
        stem, brace, names = text.strip("/").removesuffix(".py").partition("{")
        for name in names.rstrip("}").split(",") if brace else [""]:
            path = f"{stem}{name}".removesuffix("/*")
            if not any(
                (p / f"{path}.py").exists() or (p / path).exists() for p in [ROOT, *parents]
            ):
                wrong.append(path)
    assert not wrong, ", ".join(wrong)


# -- messages ------------------------------------------------------------------------------------

OF_OTHERS = {
    "cannot run with network enabled in root network namespace",  # runsc
    "error setting up chroot",
    'exec: "x": ... no such file or directory',
    "error dialing backend",
}
"""What runtimes and clients say, not this program."""


@cache
def texts() -> str:
    """Every string of the program, with a mark where an f-string puts something in."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if "_pb" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.append("".join(map(str, parts)))
    return "\n".join(found)


def pieces(message: str) -> list[str]:
    """What is left of a message without its places: FILE, N, 'x', `...`, numbers."""
    cut = re.split(r"\.\.\.|…|: |'[^']*'|\b[A-Z][A-Z]+\b|\b[A-Zx]\b|\brunc\b|\d+", message)
    return [text for piece in cut if len(text := piece.strip(" :,;()[]-/\"'")) > 3]


def test_every_message_that_is_explained_is_still_said() -> None:
    wrong = []
    for page in PAGES:
        for table in re.findall(
            r"^\| (?:message|error|step) .*\n(?:\|.*\n)+", page.read_text(), re.MULTILINE
        ):
            for row in table.splitlines()[2:]:
                for message in _INLINE.findall(row.split(" | ")[0]):
                    if message in OF_OTHERS:
                        continue
                    wrong += [
                        f"{named(page)}: {message}: nobody says {piece!r}"
                        for piece in pieces(message)
                        if piece not in texts()
                    ]
    assert not wrong, "\n".join(wrong)


_LOGGED = re.compile(
    r"(?:\b(?:line|logs|log has|warning|row)s? `([a-z][^`]*)`|`([a-z][^`]*)` in the log\b)"
)


def test_every_event_of_the_log_and_row_of_check_that_is_named_exists() -> None:
    named_in = [
        (named(page), first or second)
        for page in PAGES
        for first, second in _LOGGED.findall(" ".join(page.read_text().split()))
    ]
    assert len(named_in) >= 8
    begins = texts().splitlines()
    wrong = [f"{p}: {e}" for p, e in named_in if not any(line.startswith(e) for line in begins)]
    assert not wrong, "\n".join(wrong)


def test_every_annotation_that_is_named_is_read() -> None:
    wrong = [
        f"{page}: {name}"
        for page, line in code()
        for name in re.findall(r"(?<![\w.])(?:\w+\.)*(?:cri-shim\.io|kubernetes\.io)/[\w-]+", line)
        if name not in texts()
    ]
    assert not wrong, "\n".join(wrong)


# -- documents -----------------------------------------------------------------------------------


def test_every_document_that_an_operator_would_copy_is_valid(tmp_path: Path) -> None:
    kinds = set()
    for block in blocks():
        data = block.text.encode()
        if block.language == "toml":
            path = tmp_path / block.text.splitlines()[0].removeprefix("# /")
            parse_hosts(data, path, path.parent.name)
            kinds.add("hosts.toml")
        elif block.language == "json" and "{{" in block.text:
            filled = render_template(block.text, ["10.1.0.0/16", "fd00:1::/64"], source=block.page)
            parse_conflist(filled.encode(), source=block.page)
            kinds.add("template")
        elif block.language == "json":
            document = json.loads(block.text)
            if "plugins" in document:
                sample = json.loads((ROOT / "deploy/cni/10-cri-shim.conflist").read_text())
                assert document == sample, f"{block.page}: not what deploy/run.sh writes"
                kinds.add("conflist")
            elif "hook" in document:
                parse_hook_file(data, block.page)
                kinds.add("hook")
    assert kinds == {"hosts.toml", "template", "conflist", "hook"}


@pytest.mark.parametrize("name", ["pod.json", "web.json"])
def test_the_readmes_pod_is_a_request(name: str) -> None:
    text = (ROOT / "README.md").read_text()
    document = re.search(rf"^\$ cat > {name} <<'END'\n(.*?)^END", text, re.MULTILINE | re.DOTALL)
    assert document is not None
    message = api_pb2.PodSandboxConfig() if name == "pod.json" else api_pb2.ContainerConfig()
    ParseDict(json.loads(document[1]), message)


# -- layers --------------------------------------------------------------------------------------


def test_every_layer_of_the_contracts_is_drawn() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    first_word = {"cri_shim": "__main__", "cri_shim.sandbox": "recovery/", "cri_shim.image": "pull"}
    drawn = {
        block.text.split()[0]: block.text for block in blocks() if block.page == "ARCHITECTURE.md"
    }
    missing = []
    for contract in tool["contracts"]:
        if contract["type"] != "layers":
            continue
        (package,) = contract["containers"]
        picture = drawn[first_word[package]]
        names = re.findall(r"\w+", " ".join(contract["layers"]))
        missing += [f"{package}.{name}" for name in names if not re.search(rf"\b{name}\b", picture)]
    assert not missing, f"not in the pictures of ARCHITECTURE.md: {', '.join(missing)}"


# -- bounds --------------------------------------------------------------------------------------


def bounds() -> Iterator[tuple[str, str]]:
    """(page, what it has to say): numbers as they are in the code."""
    mib, kib = 1 << 20, 1 << 10
    streaming = "docs/streaming.md"
    yield streaming, f"| {tickets.MAX_WAITING}, of one pod {tickets.MAX_WAITING_OF_A_POD} |"
    yield streaming, f"| {server.MAX_SESSIONS}, of one pod {server.MAX_SESSIONS_OF_A_POD} |"
    yield (
        streaming,
        f"| {newcomers.MAX_NEWCOMERS}, each for {server.HEAD_TIMEOUT_S:g} s, "
        f"{http1.MAX_HEAD_BYTES // kib} KiB and {http1.MAX_HEAD_LINES} lines |",
    )
    yield (
        streaming,
        f"| {spdy.DEFAULT_MAX_STREAMS} in a session, {server.MAX_STREAMS_OF_A_POD} in a pod, "
        f"{server.MAX_STREAMS} in all |",
    )
    yield streaming, f"| {port_forward.MAX_DIALS} in a session"
    yield streaming, f"up to {remote_command.SIZE_PATIENCE_S:g} s for the first size"
    yield streaming, f"more than {attach_pipes.MEMBER_BYTES // mib} MiB behind"
    yield streaming, f"{sync.MAX_KEPT_BYTES // mib} MiB for all"
    yield streaming, f"At most {process.MAX_STARTS} runtimes enter"
    security = "docs/security.md"
    yield security, f"| {request_limits.MAX_REQUEST_BYTES // mib} MiB, or `limits.grpc_message`"
    yield security, f"| {request_limits.MAX_ENTRIES:,};"
    yield security, f"{mounts.MAX_MOUNTS} mounts of a container"
    yield security, f"| {mounts.MAX_DEPTH} names, and as many"
    yield security, f"| {request_limits.MAX_CHARS} characters;"
    yield security, f"| {request_limits.MAX_MAP_CHARS:,} characters:"
    yield (
        security,
        f"of a pod beyond {list_bounds.ORDINARY_SANDBOX_BYTES // kib} KiB, of a container beyond "
        f"{list_bounds.ORDINARY_CONTAINER_BYTES // kib} KiB | "
        f"{list_bounds.SANDBOX_POOL_BYTES // mib} MiB of all pods, "
        f"{list_bounds.CONTAINER_POOL_BYTES // mib} MiB of all containers",
    )
    yield security, f"| host ports of a pod | {host_ports.MAX_HOST_PORTS}:"
    yield (
        security,
        f"| {quoting.MAX_QUOTED_CHARS} characters and the number of those left out; "
        f"of all {status.MAX_TEXT_BYTES} bytes",
    )
    yield "docs/sandboxes.md", f"tmpfs of {pod_files.MEMORY_BYTES // mib} MiB"
    yield (
        "docs/containers.md",
        f"at most {mounts.MAX_MOUNTS} mounts, each at most {mounts.MAX_DEPTH} names deep",
    )
    networking = "docs/networking.md"
    yield networking, f"more than {network_annotations.MAX_NETWORKS} networks"
    yield (
        networking,
        f"{network_annotations.MAX_CNI_ARGS} arguments of {network_annotations.MAX_CNI_ARG} characters",
    )
    yield networking, f"growing pauses of {reconciler.MAX_RETRY_S / 60:g} minutes at most"
    images = "docs/images.md"
    yield images, f"| {manifest.MAX_MANIFEST_BYTES // mib} MiB and 100,000 values |"
    yield images, f"| {manifest.MAX_WORDS_BYTES // kib} KiB in memory"
    yield (
        images,
        f"| {manifest.MAX_LAYER_BYTES >> 30} GiB, {protocol.Limits().max_inodes:,} entries |",
    )
    yield images, f"| layers of an image | {manifest.MAX_LAYERS} |"
    yield images, f"have {archive.MAX_IMAGES} images with {archive.MAX_NAMES} names"
    reliability = "docs/reliability.md"
    yield (
        reliability,
        f"| starts of execs | {process.MAX_STARTS}, and {process.MAX_SLOW_STARTS} slow ones "
        f"(some 10 MB each) | {process.MAX_STARTS_OF_POD}, and {process.MAX_STARTS_OF_ONE} of one",
    )
    yield reliability, f"(at least {launch.MIN_SLOW}, some 20 MB each) | {launch.MAX_OF_POD} |"
    yield (
        reliability,
        f"| {exit_handling.TEARDOWNS_AT_ONCE}, and {2 * exit_handling.TEARDOWNS_AT_ONCE} slow ones "
        f"| {exit_handling.TEARDOWNS_OF_POD} |",
    )
    yield (
        reliability,
        f"{2 * kernel_call.MAX_UNANSWERED_OF_NODE} that hang | {kernel_call.MAX_UNANSWERED} that",
    )
    yield reliability, f"longer than {slots.SLOW_AFTER_S:g} s is slow"
    yield reliability, f"but none before {slots.PATIENCE_S:g} s"
    yield (
        reliability,
        f"{request_budget.MAX_ORDINARY_BYTES // mib} MiB of bytes received, and "
        f"{request_budget.MAX_LARGE_BYTES // mib} MiB of those with more than "
        f"{request_budget.LARGE_BYTES // kib} KiB",
    )
    passed = len((ROOT / "tests/conformance/passed.txt").read_text().splitlines())
    yield "README.md", f"{passed} of its 142 specs pass"
    yield "CHANGELOG.md", f"critest ({passed} of 142 specs pass"
    yield "docs/operating.md", f"running ones up to {lifecycle.CALLS_GRACE_S:g} seconds"


def test_every_bound_is_the_codes() -> None:
    pages = {page: " ".join((ROOT / page).read_text().split()) for page in {p for p, _ in bounds()}}
    wrong = [f"{page} lacks: {text}" for page, text in bounds() if text not in pages[page]]
    assert not wrong, "\n".join(wrong)

"""The README's first pod, command by command, as a reader pastes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conformance.crictl import Crictl

README = Path(__file__).parents[2] / "README.md"
_PROMPT = "$ "
_HERE_DOCUMENT = re.compile(r"<<'(\w+)'$")


def first_pod() -> tuple[str, list[str]]:
    """The commands of the block that pulls an image, as one script; the lines that it is to print."""
    (block,) = re.findall(
        r"```console\n(\$ sudo crictl pull .*?)```", README.read_text(), re.DOTALL
    )
    commands: list[str] = []
    outputs: list[str] = []
    end = ""
    for line in block.splitlines():
        if end:
            commands.append(line)
            end = "" if line == end else end
        elif line.startswith(_PROMPT):
            commands.append(line.removeprefix(_PROMPT).replace("sudo ", ""))
            found = _HERE_DOCUMENT.search(line)
            end = found[1] if found else ""
        else:
            outputs.append(line)
    return "\n".join(commands), outputs


def test_every_command_of_the_first_pod_does_what_the_readme_says(
    crictl: Crictl, image: str, tmp_path: Path
) -> None:
    script, outputs = first_pod()
    # Only what the reader's own node has: an image of the internet, and a directory for logs.
    assert script.count("busybox:stable") == 2  # the pull, and the container's
    assert script.count('"/var/log/pods/') == 1
    script = script.replace("busybox:stable", image)
    script = script.replace('"/var/log/pods/', f'"{tmp_path}/')
    # The web server opens its port a moment after its container has started.
    script = script.replace(
        "curl ", "curl --no-progress-meter --retry 50 --retry-connrefused --retry-delay 1 "
    )
    said = crictl.shell(script).splitlines()
    for line in outputs:
        begin = line.split("...")[0] if "sha256" not in line else line.split("5b3f")[0]
        assert any(each.startswith(begin) for each in said), (line, said)
    assert crictl("pods", "-q") == ""

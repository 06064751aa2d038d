import pytest

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim._pb.cri.v1.api_pb2 import ContainerConfig
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.inputs import ImageDefaults
from cri_shim.oci.spec.stop_signal import parse_signal, stop_signal


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("15", 15),
        ("sigusr1", 10),
        ("SIGCLD", 17),
        ("SIGPOLL", 29),
        ("SIGIOT", 6),
        ("SIGSTKFLT", 16),
        ("SIGRTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-2", 62),
        ("SIGRTMAX", 64),
        ("64", 64),
    ],
)
def test_signal_is_known_by_name_and_number(text: str, number: int) -> None:
    assert parse_signal(text, "stop_signal") == number


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "65", "-9", "+9", "1e1", "32", "33", "SIG", "SIGNOPE", "SIGRTMIN+31"),
        *("RTMAX-31", "SIGRTMIN-1", "TERM ", "\u0661\u0665", "SIGSIGTERM"),
    ],
)
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="image StopSignal"):
        parse_signal(text, "image StopSignal")


def test_every_signal_of_cri_has_the_kernels_number() -> None:
    image = ImageDefaults()
    numbers = {
        name: stop_signal(ContainerConfig(stop_signal=value), image)
        for name, value in api_pb2.Signal.items()
    }
    assert numbers.pop("SIGNAL_RUNTIME_DEFAULT") == 15
    assert numbers["SIGNAL_SIGABRT"] == 6
    assert numbers["SIGNAL_SIGSYS"] == 31
    assert numbers["SIGNAL_SIGRTMINPLUS1"] == 35
    assert numbers["SIGNAL_SIGRTMAXMINUS14"] == 50
    assert set(numbers.values()) == set(range(1, 32)) | set(range(34, 65))


def test_request_comes_before_the_image_and_the_image_before_sigterm() -> None:
    image = ImageDefaults(stop_signal="SIGQUIT")
    assert stop_signal(ContainerConfig(stop_signal=api_pb2.SIGNAL_SIGINT), image) == 2
    assert stop_signal(ContainerConfig(), image) == 3
    assert stop_signal(ContainerConfig(), ImageDefaults()) == 15


def test_number_that_cri_does_not_name_is_refused() -> None:
    config = ContainerConfig.FromString(bytes.fromhex("9001e707"))
    with pytest.raises(InvalidArgumentError, match="stop_signal: 999"):
        stop_signal(config, ImageDefaults())

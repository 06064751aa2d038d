from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from cri_shim.errors import (
    BadArchiveError,
    BadImageReferenceError,
    ConfigError,
    DamagedBlobError,
    DeadlineError,
    NotFoundError,
    RegistryAuthError,
    RegistryUnavailableError,
    UnavailableError,
)
from cri_shim.image import layer_downloads
from cri_shim.image.model import Image, PullStep
from cri_shim.image.registry.credentials import Credentials
from cri_shim.slots import Slots
from tests.fakes.clock import turn_over, until
from tests.fakes.metrics import sample
from tests.fakes.registry import Answer, Corrupt, Cut, FakeRegistry, Stall
from tests.images import LayerBlob, file, layer

if TYPE_CHECKING:
    from cri_shim.image.model import PullProgress
    from tests.unit.image.conftest import Node

pytestmark = pytest.mark.asyncio

BASE = layer(file("base", b"b" * 100_000), compression="gzip")
MIDDLE = layer(file("middle", b"m" * 1000))
TOP = layer(file("top", b"t" * 1000), compression="gzip")
ME = Credentials("", "me", "hunter2")


def failures(reason: str) -> float:
    return sample("cri_shim_image_pull_failures_total", reason=reason)


async def test_an_image_comes_whole_with_its_names(node: Node, registry: FakeRegistry) -> None:
    pushed = registry.add("team/app", BASE, MIDDLE, TOP, tag="1", user="7")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    assert image.id == pushed.config_digest
    assert image.repo_tags == (f"{registry.host}/team/app:1",)
    assert image.repo_digests == (f"{registry.host}/team/app@{pushed.digest}",)
    assert image.config.user == "7"
    assert len(node.store.layer_stack(image).lowers) == 3
    assert node.store.find(pushed.config_digest) is image
    assert node.leftovers() == []
    for each in (BASE, MIDDLE, TOP):
        assert each.digest in node.store.blobs


async def test_it_is_there_after_a_restart(node: Node, registry: FakeRegistry) -> None:
    registry.add("team/app", BASE, TOP, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    await node.open()
    assert node.store.find(image.id) == image


async def test_a_pull_of_what_is_here_only_asks(node: Node, registry: FakeRegistry) -> None:
    registry.add("team/app", BASE, tag="1")
    name = f"{registry.host}/team/app:1"
    first = await node.puller.pull(name)
    registry.seen.clear()
    assert await node.puller.pull(name) is first
    assert [seen.method for seen in registry.seen] == ["HEAD"]
    by_digest = await node.puller.pull(first.repo_digests[0])
    assert by_digest is first
    assert [seen.method for seen in registry.seen] == ["HEAD", "HEAD"]


async def test_what_is_here_is_not_given_to_whom_the_registry_refuses(node: Node) -> None:
    async with FakeRegistry(basic=("me", "hunter2")) as registry:
        registry.add("team/app", BASE, tag="1")
        name = f"{registry.host}/team/app:1"
        await node.puller.pull(name, ME)
        with pytest.raises(RegistryAuthError, match="the request had no credentials"):
            await node.puller.pull(name)


async def test_a_tag_that_moved_takes_its_name_along(node: Node, registry: FakeRegistry) -> None:
    registry.add("team/app", BASE, tag="1")
    name = f"{registry.host}/team/app:1"
    old = await node.puller.pull(name)
    registry.add("team/app", BASE, TOP, tag="1")
    registry.seen.clear()
    new = await node.puller.pull(name)
    untagged = node.store.find(old.id)
    assert new.id != old.id
    assert new.repo_tags == (name,)
    assert untagged is not None
    assert untagged.repo_tags == ()
    assert registry.count("GET", f"/blobs/{BASE.digest}") == 0
    assert registry.count("GET", f"/blobs/{TOP.digest}") == 1


async def test_a_digest_beside_a_tag_counts_and_the_tag_is_not_given(
    node: Node, registry: FakeRegistry
) -> None:
    pushed = registry.add("team/app", BASE)
    image = await node.puller.pull(f"{registry.host}/team/app:1@{pushed.digest}")
    assert image.repo_tags == ()
    assert node.store.find(f"{registry.host}/team/app:1@{pushed.digest}") is image


async def test_an_index_is_known_by_its_own_digest(node: Node, registry: FakeRegistry) -> None:
    pushed = registry.add("team/app", BASE)
    digest = registry.add_index("team/app", pushed.descriptor, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    assert image.repo_digests == (f"{registry.host}/team/app@{digest}",)
    assert image.manifest_digests == (pushed.digest,)


async def test_an_image_without_layers_can_be_pulled(node: Node, registry: FakeRegistry) -> None:
    registry.add("team/empty", tag="1")
    image = await node.puller.pull(f"{registry.host}/team/empty:1")
    assert image.chain == ()


async def test_a_layer_that_comes_twice_is_downloaded_once(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/app", BASE, TOP, BASE, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    assert len(image.chain) == 3
    assert registry.count("GET", f"/blobs/{BASE.digest}") == 1


async def test_layers_of_other_images_are_used_and_counted(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/one", BASE, MIDDLE, tag="1")
    registry.add("team/two", BASE, TOP, tag="1")
    await node.puller.pull(f"{registry.host}/team/one:1")
    before = sample("cri_shim_image_layer_reuse_total")
    await node.puller.pull(f"{registry.host}/team/two:1")
    assert sample("cri_shim_image_layer_reuse_total") == before + 1
    assert registry.count("GET", f"/blobs/{BASE.digest}") == 1


async def test_a_blob_below_other_layers_is_unpacked_from_disk(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/one", BASE, tag="1")
    registry.add("team/two", TOP, BASE, tag="1")
    await node.puller.pull(f"{registry.host}/team/one:1")
    await node.puller.pull(f"{registry.host}/team/two:1")
    assert registry.count("GET", f"/blobs/{BASE.digest}") == 1
    assert any(BASE.digest in what for what in node.unpacker.from_files)


async def test_a_stored_blob_that_was_damaged_is_fetched_again(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/one", BASE, tag="1")
    registry.add("team/two", TOP, BASE, tag="1")
    await node.puller.pull(f"{registry.host}/team/one:1")
    path = node.store.blobs.path(BASE.digest)
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    await node.puller.pull(f"{registry.host}/team/two:1")
    assert registry.count("GET", f"/blobs/{BASE.digest}") == 2
    assert path.read_bytes() == BASE.blob


@pytest.mark.parametrize("streams", [True, False])
async def test_an_unpacker_can_not_write_to_what_it_reads(
    node: Node, registry: FakeRegistry, streams: bool
) -> None:
    registry.add("team/app", BASE, tag="1")
    node.unpacker.stream_free = streams
    await node.puller.pull(f"{registry.host}/team/app:1")
    assert node.unpacker.accesses == {os.O_RDONLY}


async def test_without_room_for_a_stream_a_layer_goes_over_the_disk(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/app", BASE, TOP, tag="1")
    node.unpacker.stream_free = False
    await node.puller.pull(f"{registry.host}/team/app:1")
    assert not node.unpacker.streamed
    assert len(node.unpacker.from_files) == 2


async def test_downloads_are_bounded_and_layers_unpack_side_by_side(
    node: Node, registry: FakeRegistry
) -> None:
    layers = [layer(file(f"f{number}", b"x" * 1000)) for number in range(8)]
    registry.add("team/app", *layers, tag="1")
    registry.paused = asyncio.Event()
    pulling = asyncio.create_task(node.puller.pull(f"{registry.host}/team/app:1"))
    await until(lambda: registry.count("GET", "/blobs/") >= 1 + 3)
    await turn_over(200)  # a fourth would come now
    assert registry.count("GET", "/blobs/") == 1 + 3  # the configuration, and three layers
    assert node.unpacker.at_once == 3
    registry.paused.set()
    await pulling


async def test_four_pulls_that_drip_leave_a_fifth_its_time(
    node: Node, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_downloads, "WINDOW_S", 0.2)
    few_slow = Slots(12, slow_total=6, slow_after_s=None, patience_s=0.0)
    monkeypatch.setattr(node.puller, "_downloads", few_slow)
    good = layer(file("good", os.urandom(100_000)))
    registry.add("team/good", good, tag="1")
    async with FakeRegistry() as dripping:
        dripping.drip_s = 0.2
        for number in range(4):
            names = [f"{number}-{each}" for each in range(3)]
            layers = [layer(file(name, os.urandom(5000))) for name in names]
            dripping.add(f"team/slow{number}", *layers, tag="1")
        slow = [
            asyncio.create_task(node.puller.pull(f"{dripping.host}/team/slow{number}:1"))
            for number in range(4)
        ]
        # The registry's share: the fourth waits.
        await until(lambda: dripping.count("GET", "/blobs/") >= 4 + 9)
        # The first has three slots of the rest at once.
        await node.puller.pull(f"{registry.host}/team/good:1")
        # Six who are slow go on; for one more the registry that has most of them gives one up.
        async with asyncio.timeout(20):
            await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        dripping.drip_s = 0.0
        ends = await asyncio.gather(*slow, return_exceptions=True)
        refusals = [end for end in ends if isinstance(end, DeadlineError)]
        assert all(f"registry {dripping.host} has the most" in str(each) for each in refusals)
        assert 1 <= len(refusals) < len(ends)
        assert all(isinstance(end, Image) for end in ends if end not in refusals)


# Sharing


async def test_pulls_of_one_image_share_the_work(node: Node, registry: FakeRegistry) -> None:
    registry.add("team/app", BASE, TOP, tag="1")
    name = f"{registry.host}/team/app:1"
    heard: list[PullProgress] = []
    images = await asyncio.gather(
        *(node.puller.pull(name, progress=heard.append if i else None) for i in range(3))
    )
    assert len({id(image) for image in images}) == 1
    assert registry.count("GET", f"/blobs/{BASE.digest}") == 1
    assert registry.count("GET", "/manifests/") == 1
    assert len([each for each in heard if each.step is PullStep.DONE]) == 4


async def test_a_caller_who_goes_away_ends_it_for_nobody(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/app", BASE, tag="1")
    registry.paused = asyncio.Event()
    name = f"{registry.host}/team/app:1"
    first = asyncio.create_task(node.puller.pull(name))
    second = asyncio.create_task(node.puller.pull(name))
    await until(lambda: registry.count("GET", "/team/app"))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    registry.paused.set()
    assert (await second).repo_tags == (name,)


async def test_a_pull_that_nobody_keeps_ends_with_its_last_caller_and_leaves_nothing(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/app", BASE, TOP, tag="1")
    registry.faults.append(Stall(TOP.digest, 99, after_bytes=10))
    name = f"{registry.host}/team/app:1"
    before = failures("cancelled")
    pulling = asyncio.create_task(node.puller.pull(name, abandon=True))
    await until(lambda: registry.count("GET", TOP.digest))
    await turn_over(200)
    assert registry.count("GET", TOP.digest) == 1
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    await node.puller.close(5)
    assert failures("cancelled") == before + 1
    assert node.store.images() == []
    assert node.leftovers() == []


async def test_an_index_counts_more_than_a_configuration_and_the_difference_is_logged(
    node: Node, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed = registry.add("team/app", BASE, architecture="s390x")
    platform = {"os": "linux", "architecture": node.store.platform.architecture}
    registry.add_index("team/app", {**pushed.descriptor, "platform": platform}, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    assert image.id == pushed.config_digest
    said = capsys.readouterr().out
    assert "index and its configuration name different platforms; trusting the index" in said
    assert "linux/s390x" in said


async def test_images_that_share_a_layer_share_its_download(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/one", BASE, MIDDLE, tag="1")
    registry.add("team/two", BASE, TOP, tag="1")
    await asyncio.gather(
        node.puller.pull(f"{registry.host}/team/one:1"),
        node.puller.pull(f"{registry.host}/team/two:1"),
    )
    assert registry.count("GET", f"/blobs/{BASE.digest}") == 1


@pytest.mark.parametrize("ends_well", [True, False])
async def test_a_registry_that_drips_holds_up_no_pull_of_the_same_layer_from_another(
    node: Node, registry: FakeRegistry, ends_well: bool
) -> None:
    registry.add("team/good", BASE, TOP, tag="1")
    async with FakeRegistry() as dripping:
        dripping.add("team/slow", BASE, tag="1", user="7")
        dripping.faults += [] if ends_well else [Corrupt(BASE.digest, 1, at=20)]
        dripping.drip_s = 0.2
        slow = asyncio.create_task(node.puller.pull(f"{dripping.host}/team/slow:1"))
        async with asyncio.timeout(20):
            await until(lambda: dripping.count("GET", BASE.digest))
            good = await node.puller.pull(f"{registry.host}/team/good:1")
        assert not slow.done()
        dripping.drip_s = 0.0
        [end] = await asyncio.gather(slow, return_exceptions=True)
        # Once the layer is here, the next try needs no bytes any more.
        assert isinstance(end, Image)
        assert dripping.count("GET", BASE.digest) == 1
    assert node.store.layer_stack(end).lowers == node.store.layer_stack(good).lowers[1:]
    assert node.leftovers() == []
    assert node.store.blobs.path(BASE.digest).read_bytes() == BASE.blob


async def test_a_pull_that_fails_leaves_a_layer_to_the_one_that_brought_it(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/good", BASE, TOP, tag="1")
    async with FakeRegistry() as dripping:
        dripping.add("team/slow", BASE, MIDDLE, tag="1")
        dripping.drip_s = 0.2
        slow = asyncio.create_task(node.puller.pull(f"{dripping.host}/team/slow:1", abandon=True))
        async with asyncio.timeout(20):
            await until(lambda: dripping.count("GET", BASE.digest))
            good = await node.puller.pull(f"{registry.host}/team/good:1")
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        await node.puller.close(5)
    assert node.store.images() == [good]
    assert len(node.store.layer_stack(good).lowers) == 2
    assert node.leftovers() == []


async def test_ten_images_of_one_registry_share_the_download_of_their_base(
    node: Node, registry: FakeRegistry
) -> None:
    for number in range(10):
        registry.add(f"team/app{number}", BASE, TOP, tag="1", user=str(number))
    names = [f"{registry.host}/team/app{number}:1" for number in range(10)]
    pulled = await asyncio.gather(*map(node.puller.pull, names))
    assert len({image.id for image in pulled}) == 10
    assert registry.count("GET", BASE.digest) == 1
    assert registry.count("GET", TOP.digest) == 1


async def test_a_failing_pull_does_not_spoil_one_that_shares_its_layers(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/bad", BASE, MIDDLE, tag="1")
    registry.add("team/good", BASE, TOP, tag="1")
    del registry.blobs[MIDDLE.digest]
    bad, good = await asyncio.gather(
        node.puller.pull(f"{registry.host}/team/bad:1"),
        node.puller.pull(f"{registry.host}/team/good:1"),
        return_exceptions=True,
    )
    assert isinstance(bad, NotFoundError)
    assert not isinstance(good, BaseException)
    assert len(node.store.layer_stack(good).lowers) == 2
    assert node.leftovers() == []


async def test_other_credentials_are_another_pull(node: Node) -> None:
    async with FakeRegistry(basic=("me", "hunter2")) as registry:
        registry.add("team/app", BASE, tag="1")
        registry.paused = asyncio.Event()
        name = f"{registry.host}/team/app:1"
        allowed = asyncio.create_task(node.puller.pull(name, ME))
        await until(lambda: registry.count("GET", "/team/app"))
        with pytest.raises(RegistryAuthError):
            await node.puller.pull(name, Credentials("", "me", "wrong"))
        with pytest.raises(RegistryAuthError):
            await node.puller.pull(name)
        registry.paused.set()
        await allowed


# Credentials


async def test_credentials_of_another_registry_stay_here(node: Node) -> None:
    async with FakeRegistry(basic=("me", "hunter2")) as registry:
        registry.add("team/app", BASE, tag="1")
        foreign = Credentials("other.example", "me", "hunter2")
        with pytest.raises(RegistryAuthError, match="the request had no credentials"):
            await node.puller.pull(f"{registry.host}/team/app:1", foreign)
        assert not any("Authorization" in seen.headers for seen in registry.seen)
        own = Credentials(registry.host, "me", "hunter2")
        await node.puller.pull(f"{registry.host}/team/app:1", own)


async def test_a_mirror_never_sees_the_registrys_credentials(node: Node) -> None:
    async with (
        FakeRegistry(basic=("me", "hunter2")) as mirror,
        FakeRegistry(tokens=True, users={"me": "hunter2"}) as home,
    ):
        home.add("team/app", BASE, tag="1")
        node.hosts("r.example", f'server = "{home.url}"\n[host."{mirror.url}"]\n')
        image = await node.puller.pull("r.example/team/app:1", ME)
        assert image.repo_tags == ("r.example/team/app:1",)
        assert mirror.seen
        assert not any("Authorization" in seen.headers for seen in mirror.seen)


async def test_the_auth_file_helps_pulls_that_bring_nothing(node: Node) -> None:
    async with FakeRegistry(basic=("me", "hunter2")) as registry:
        registry.add("team/app", BASE, tag="1")
        auth_file = node.root / "auth.json"
        auth_file.write_text(
            json.dumps({"auths": {registry.host: {"username": "me", "password": "hunter2"}}})
        )
        node.puller.reconfigure(node.settings(auth_file=auth_file))
        await node.puller.pull(f"{registry.host}/team/app:1")


async def test_no_secret_is_logged_or_told(node: Node) -> None:
    secret = Credentials("", "me", "hunter2wrong", "", "")
    async with FakeRegistry(tokens=True, users={"me": "hunter2"}) as registry:
        with capture_logs() as logs, pytest.raises(RegistryAuthError) as caught:
            await node.puller.pull(f"{registry.host}/team/app:1", secret)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str(logs)


# Failures


@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        (Answer("/manifests/", 99, status=404), NotFoundError, "not_found"),
        (Answer("/manifests/", 99, status=403), RegistryAuthError, "unauthorized"),
        (Answer("/manifests/", 99, status=500), RegistryUnavailableError, "unavailable"),
        (Answer("/blobs/", 99, status=429), RegistryUnavailableError, "unavailable"),
        (Answer(BASE.digest, 99, status=404), NotFoundError, "not_found"),
        (Cut(BASE.digest, 99), RegistryUnavailableError, "unavailable"),
        (Stall(BASE.digest, 99), RegistryUnavailableError, "unavailable"),
        (Corrupt(BASE.digest, 99, at=20), DamagedBlobError, "bad_image"),
        (Corrupt(MIDDLE.digest, 99, at=900), DamagedBlobError, "bad_image"),
        (Corrupt("/manifests/", 99, at=20), BadArchiveError, "bad_image"),
    ],
)
async def test_a_failure_has_its_reason_and_leaves_nothing(
    node: Node, registry: FakeRegistry, fault: Any, error: type[Exception], reason: str
) -> None:
    registry.add("team/app", BASE, MIDDLE, TOP, tag="1")
    registry.faults.append(fault)
    fault.times = 99
    node.puller.reconfigure(node.settings(pull_progress_timeout_s=1.5))
    before = failures(reason)
    with pytest.raises(error) as caught:
        await node.puller.pull(f"{registry.host}/team/app:1")
    assert type(caught.value) is error
    assert registry.host in str(caught.value) or BASE.digest in str(caught.value)
    assert failures(reason) == before + 1
    assert node.store.images() == []
    assert node.leftovers() == []


@pytest.mark.parametrize(
    "fault",
    [
        Cut("/blobs/", 4, after_bytes=60),
        Stall("/blobs/", 3, after_bytes=60),
        Corrupt(BASE.digest, 2, at=40),
        Corrupt(MIDDLE.digest, 1, at=700),
        Answer("/blobs/", 3, status=503),
        Answer("/manifests/", 3, status=429, headers={"Retry-After": "0"}),
        Cut("/manifests/", 2),
    ],
)
async def test_a_fault_that_passes_is_overcome(
    node: Node, registry: FakeRegistry, fault: Any
) -> None:
    registry.add("team/app", BASE, MIDDLE, TOP, tag="1")
    times = fault.times
    registry.faults.append(fault)
    node.puller.reconfigure(node.settings(pull_progress_timeout_s=1.5))
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    fault.times = times
    assert len(image.chain) == 3
    for each in (BASE, MIDDLE, TOP):
        assert node.store.blobs.path(each.digest).read_bytes() == each.blob


async def test_a_layer_that_is_not_what_the_configuration_promises_is_refused(
    node: Node, registry: FakeRegistry
) -> None:
    lying = LayerBlob(TOP.blob, BASE.diff_id, TOP.media_type)
    registry.add("team/app", lying, tag="1")
    with pytest.raises(BadArchiveError, match="its unpacked bytes have the digest"):
        await node.puller.pull(f"{registry.host}/team/app:1")
    assert registry.count("GET", f"/blobs/{TOP.digest}") == 1
    assert node.leftovers() == []


async def test_a_damaged_layer_with_the_right_digest_is_refused_at_once(
    node: Node, registry: FakeRegistry
) -> None:
    broken = LayerBlob(BASE.blob[:-9], BASE.diff_id, BASE.media_type)
    registry.add("team/app", broken, tag="1")
    with pytest.raises(BadArchiveError, match="gzip stream is damaged"):
        await node.puller.pull(f"{registry.host}/team/app:1")
    assert registry.count("GET", f"/blobs/{broken.digest}") == 1


async def test_a_pull_that_is_ended_leaves_nothing(node: Node, registry: FakeRegistry) -> None:
    registry.add("team/app", BASE, MIDDLE, TOP, tag="1")
    registry.faults.append(Stall(TOP.digest, 99, after_bytes=10))
    pulling = asyncio.create_task(node.puller.pull(f"{registry.host}/team/app:1"))
    await until(lambda: registry.count("GET", TOP.digest))
    await turn_over(200)
    assert registry.count("GET", TOP.digest) == 1
    before = failures("cancelled")
    await node.puller.close(0)
    with pytest.raises(UnavailableError, match="the server is stopping"):
        await pulling
    assert failures("cancelled") == before + 1
    assert node.leftovers() == []


async def test_the_next_pull_after_a_failure_succeeds(node: Node, registry: FakeRegistry) -> None:
    registry.add("team/app", BASE, TOP, tag="1")
    registry.faults.append(Answer(TOP.digest, status=404))
    with pytest.raises(NotFoundError):
        await node.puller.pull(f"{registry.host}/team/app:1")
    assert isinstance((await node.puller.pull(f"{registry.host}/team/app:1")).id, str)


async def test_names_of_the_built_in_images_are_not_looked_for(node: Node) -> None:
    with pytest.raises(BadImageReferenceError, match="built in"):
        await node.puller.pull("cri-shim.local/pause:1")


async def test_an_unsound_hosts_file_is_named(node: Node) -> None:
    node.hosts("r.example", "server = 5")
    with pytest.raises(ConfigError, match=r"r\.example/hosts\.toml"):
        await node.puller.pull("r.example/a")


# Telling


async def test_progress_tells_of_each_layer(node: Node, registry: FakeRegistry) -> None:
    registry.add("team/one", BASE, tag="1")
    registry.add("team/two", BASE, TOP, tag="1")
    await node.puller.pull(f"{registry.host}/team/one:1")
    heard: list[PullProgress] = []
    await node.puller.pull(f"{registry.host}/team/two:1", progress=heard.append)

    def steps(digest: str) -> list[str]:
        return list(dict.fromkeys(each.step for each in heard if each.blob == digest))

    assert steps(BASE.digest) == ["here"]
    assert steps(TOP.digest) == ["waiting", "downloading", "unpacking", "done"]
    assert all(each.total_bytes == len(TOP.blob) for each in heard if each.blob == TOP.digest)
    assert heard[-1].done_bytes == heard[-1].total_bytes


async def test_the_unpacker_is_started_for_what_is_not_here(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/app", BASE, tag="1")
    await node.puller.pull(f"{registry.host}/team/app:1")
    assert node.unpacker.warm
    node.unpacker.warm = False
    image: Image = await node.puller.pull(f"{registry.host}/team/app:1")
    assert not node.unpacker.warm
    assert image.size > 4096  # one layer, and its documents

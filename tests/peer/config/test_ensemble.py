"""Ensemble files: the example in the docs, what is refused and where, and arbitrary bytes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dms_peer.cli.failures import describe_failure
from dms_peer.config.ensemble import EnsembleFile, parse_ensemble, read_ensemble_file
from dms_peer.errors import DocumentError
from dms_protocols.messages.bid import EnsembleRequest, GeneralRequirements, Location, NodeRequest, Place
from dms_protocols.wire.conversion import from_map, to_map
from dms_resources.components import GPUVendor
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, PortDemand, RAMDemand
from dms_resources.units import GIB, Cores

DOCS = (Path(__file__).parents[3] / "docs" / "ensembles.md").read_text()
EXAMPLE = re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)[1]  # type: ignore[index]
PINNED = "12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"
EXCLUDED = "12D3KooWBaNnGphBxVkQNWkpqmpoh1GVUbXBKFSxAD96zaqdX4BK"
SMALL = "resources: {cpu: {cores: 1}, ram: {size: 1GiB}, disk: {size: 0}}"


def parse(text: str) -> EnsembleFile:
    return parse_ensemble(text.encode(), "e.yaml")


def test_the_file_in_the_docs_has_everything_and_says_what_it_seems_to() -> None:
    ensemble = parse(EXAMPLE)
    trainer = NodeRequest(
        node_id="trainer",
        executors=("docker",),
        resources=Demand(
            cpu=CPUDemand(cores=Cores.of(4), architecture="x86_64", clock_speed=2_500_000_000),
            ram=RAMDemand(size=16 * GIB),
            disk=DiskDemand(size=100 * GIB),
            gpus=(
                GPUDemand(vram=24 * GIB, vendor=GPUVendor.NVIDIA, model="A100"),
                GPUDemand(vram=16 * GIB, exclusive=True),
            ),
        ),
        location=Location(
            accept=(Place(continent="Europe"), Place(country="US", city="Boston")), reject=(Place(country="NO"),)
        ),
        public_ports=PortDemand(static=(16400,), dynamic=2),
        general_requirements=GeneralRequirements(),
    )
    store = NodeRequest(
        node_id="store",
        resources=Demand(
            cpu=CPUDemand(cores=Cores.of("0.5")),
            ram=RAMDemand(size=2 * GIB),
            disk=DiskDemand(size=500 * 10**9),
            gpus=(GPUDemand(uuid="GPU-5c3b2a1f"),),
        ),
    )
    assert ensemble == EnsembleFile(
        id="training",
        nodes=(trainer, store),
        peer_exclusion=(EXCLUDED,),
        pins={"store": PINNED},
        different_peers=True,
    )


def test_the_example_names_every_field() -> None:
    written = set(re.findall(r"\b([a-z_]+):", re.sub("#.*", "", EXAMPLE)))
    assert written == {
        "id", "different_peers", "peer_exclusion", "request", "node_id", "peer", "executors", "resources", "cpu",
        "cores", "architecture", "clock_speed", "ram", "disk", "size", "gpus", "vram", "vendor", "model", "uuid",
        "exclusive", "location", "accept", "reject", "continent", "country", "city", "public_ports", "static",
        "dynamic", "general_requirements", "privileged_docker",
    }  # fmt: skip


def test_a_request_is_made_of_it_with_a_nonce_of_its_own() -> None:
    ensemble = parse(EXAMPLE)
    first, second = (ensemble.asked(deadline=5.0) for _ in range(2))
    assert first.nonce != second.nonce
    assert (first.id, first.deadline, first.request) == ("training", 5.0, ensemble.nodes)
    assert first.peer_exclusion == (EXCLUDED,)
    assert from_map(to_map(first), EnsembleRequest) == first
    assert ensemble.asked(deadline=5.0, nonce=7).nonce == 7
    nameless = parse(f"request: [{{node_id: a, {SMALL}}}]")
    assert nameless.asked(deadline=1.0).id != nameless.asked(deadline=1.0).id


def test_a_peer_is_not_asked_about_nodes_that_are_pinned_to_another() -> None:
    ensemble = parse(EXAMPLE)
    assert [node.node_id for node in ensemble.for_peer(PINNED).nodes] == ["trainer", "store"]
    assert [node.node_id for node in ensemble.for_peer(EXCLUDED).nodes] == ["trainer"]


def node(*lines: str) -> str:
    """A file with one node and these additional lines, which begin on line 4."""
    return "\n".join(["request:", "- node_id: a", f"  {SMALL}", *(f"  {line}" for line in lines)])


@pytest.mark.parametrize(
    ("text", "place", "field", "fragment", "hint"),
    [
        ("", (1, 1), "", "empty", ""),
        ("[]", (1, 1), "", "must be a mapping", "request"),
        ("id: x", (1, 1), "", "request is missing", "request"),
        ("request: []", (1, 10), "request", "is empty", "at least one"),
        ("request: {}", (1, 10), "request", "must be a list", "dash"),
        ("reqest: []", (1, 1), "reqest", "unknown field", "did you mean request?"),
        (node("executers: [docker]"), (4, 3), "request[0].executers", "unknown field", "did you mean executors?"),
        (node("zebra: 1"), (4, 3), "request[0].zebra", "unknown field", "use one of node_id"),
        (node("node_id: b"), (4, 3), "", "duplicate key node_id, first on line 2", "keep one"),
        (node("executors: docker"), (4, 14), "request[0].executors", "must be a list", "[a, b]"),
        (node("executors: [docker, {}]"), (4, 23), "request[0].executors[1]", "must be text", ""),
        (node("executors: ['']"), (4, 15), "request[0].executors[0]", "is empty", "remove the field"),
        (node('executors: ["a\\tb"]'), (4, 15), "request[0].executors[0]", "unprintable", ""),
        (node("peer: 12D3"), (4, 9), "request[0].peer", "not a peer id", "12D3KooW"),
        (node("peer: '1'"), (4, 9), "request[0].peer", "not a peer id", "12D3KooW"),
        (node(f"peer: {PINNED}x"), (4, 9), "request[0].peer", "not a peer id", ""),
        (node("peer:"), (4, 8), "request[0].peer", "is empty", ""),
        (node("location: {accept: [{}]}"), (4, 23), "request[0].location.accept[0]", "is empty", "continent"),
        (node("public_ports: {static: [0]}"), (4, 27), "request[0].public_ports.static[0]", "from 1 to 65535", ""),
        (node("public_ports: {static: [80, 80]}"), (4, 31), "request[0].public_ports.static[1]", "duplicate port", ""),
        (node("public_ports: {dynamic: -1}"), (4, 27), "request[0].public_ports.dynamic", "not a whole", "digits"),
        (node("public_ports: {dynamic: 1025}"), (4, 27), "request[0].public_ports.dynamic", "from 0 to 1024", ""),
        (node("public_ports: {static: [80], dynamic: 1024}"), (4, 17), "request[0].public_ports", "1025 ports", "1024"),
        (
            node("public_ports: {dynamic: 1024}") + f"\n- node_id: b\n  {SMALL}\n  public_ports: {{static: [80]}}",
            (5, 3),
            "request[1]",
            "1025 ports",
            "at most 1024 in all",
        ),
        (node("public_ports: {dynamic: 1_0}"), (4, 27), "request[0].public_ports.dynamic", "not a whole", "digits"),
        (
            node("general_requirements: {privileged_docker: yes}"),
            (4, 45),
            "request[0].general_requirements.privileged_docker",
            "not true or false",
            "",
        ),
        (
            "request: [{node_id: a, resources: {cpu: {cores: 1}, ram: {size: 8}, disk: {size: 0}}}]",
            (1, 65),
            "request[0].resources.ram.size",
            "8 has no unit",
            "write 8GiB",
        ),
        (node("- b"), (4, 3), "", "invalid YAML", "indentation"),
        (node("location: &here {accept: []}"), (4, 13), "", "anchors and aliases", "write the value out"),
        (node("location: *here"), (4, 13), "", "anchors and aliases", "write the value out"),
        (node("location: !!map {}"), (4, 13), "", "tags", ""),
        (node("executors: " + "[" * 40), (4, 28), "", "more than 16 levels", ""),
        ('id: "\\UFFFFFFFF"', (1, 1), "", "invalid YAML", ""),
        ("%YAML " + "9" * 5000 + ".1\n---\nid: a", (1, 1), "", "invalid YAML", ""),
        ("request: [" + "1," * 30_000 + "1]", (1, 40_005), "", "more than 20000 values", ""),
        (node() + "\n---\n" + node(), (4, 1), "", "second document", ""),
        (node() + "\n- node_id: a\n  " + SMALL, (4, 3), "request[1]", "duplicate node_id a", ""),
        ("different_peers: 1\n" + node(), (1, 18), "different_peers", "not true or false", ""),
        (f"peer_exclusion: [{PINNED}]\n" + node(f"peer: {PINNED}"), (3, 3), "request[0]", "peer_exclusion", "remove"),
        (
            "different_peers: true\n" + node(f"peer: {PINNED}") + f"\n- node_id: b\n  {SMALL}\n  peer: {PINNED}",
            (6, 3),
            "request[1]",
            "different_peers is true",
            "",
        ),
        ("request:\n" + "".join(f"- {{node_id: n{i}}}\n" for i in range(65)), (2, 1), "request", "65 entries", "64"),
        (f"id: {'x' * 129}\n" + node(), (1, 5), "id", "129 characters", "128"),
        (
            "request:\n" + "".join(f"- {{node_id: n{i}, {SMALL}, executors: [{'x' * 128}]}}\n" for i in range(64))
            + "peer_exclusion:\n" + f"- {PINNED}\n" * 1024,
            (1, 1),
            "",
            "more than 65536",
            "split",
        ),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_line_column_and_field(
    text: str, place: tuple[int, int], field: str, fragment: str, hint: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        parse(text)
    error = caught.value
    assert ((error.line, error.column), error.field) == (place, field)
    assert error.message.startswith(f"e.yaml, line {place[0]}, column {place[1]}: {field}")
    assert fragment in error.message
    assert hint in error.hint
    failure = describe_failure(error)
    assert (failure.exit_code, failure.error["code"], failure.error["line"]) == (1, "bad_ensemble", place[0])


@pytest.mark.parametrize(
    ("resources", "field", "fragment"),
    [
        ("{cpu: {cores: 1}, ram: {size: 1GiB}}", "", "disk is missing"),
        ("{cpu: {cores: 1}, ram: {size: 1GiB}, disk: {}}", "disk", "size is missing"),
        ("{cpu: {cores: 0.0001}, ram: {size: 1GiB}, disk: {size: 0}}", "cpu.cores", "0.001"),
        ("{cpu: {cores: .inf}, ram: {size: 1GiB}, disk: {size: 0}}", "cpu.cores", "invalid number of cores"),
        ("{cpu: {cores: 1}, ram: {size: 2 parsecs}, disk: {size: 0}}", "ram.size", "invalid size"),
        ("{cpu: {cores: 1}, ram: {size: 1.5}, disk: {size: 0}}", "ram.size", "has no unit"),
        ("{cpu: {cores: 1}, ram: {size: 99999PiB}, disk: {size: 0}}", "ram.size", "larger than any machine"),
        ("{cpu: {cores: 1}, ram: {size: 1B}, disk: {size: 0}, gpus: [{}]}", "gpus[0]", "vram is missing"),
        (
            "{cpu: {cores: 1}, ram: {size: 1B}, disk: {size: 0}, gpus: [{vram: 1B, vendor: nvidia}]}",
            "gpus[0].vendor",
            "not one of NVIDIA",
        ),
        (
            "{cpu: {cores: 1, clock_speed: fast}, ram: {size: 1B}, disk: {size: 0}}",
            "cpu.clock_speed",
            "is not a whole number",
        ),
    ],
)
def test_amounts_that_cannot_be_read(resources: str, field: str, fragment: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse(f"request:\n- node_id: a\n  resources: {resources}")
    assert caught.value.field == ".".join(filter(None, ("request[0].resources", field)))
    assert caught.value.line == 3
    assert fragment in caught.value.message


def test_words_are_taken_as_they_are_written() -> None:
    ensemble = parse(node("executors: [yes, 1.10, null, 0x1f, 2026-11-24, ~]"))
    assert ensemble.nodes[0].executors == ("yes", "1.10", "null", "0x1f", "2026-11-24", "~")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, Path("a\0b")):
        with pytest.raises(DocumentError) as caught:
            read_ensemble_file(path)
        assert (caught.value.code, caught.value.line) == ("bad_ensemble", 0)


def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DocumentError, match="larger than 128 KiB"):
        read_ensemble_file(path)


FRAGMENTS = st.sampled_from(
    [
        "request:", "- node_id: a\n", f"  {SMALL}\n", "\n", "  ", "{", "}", "[", "]", ": ", ", ", "&a ", "*a", "!!x ",
        "? ", "- ", "|\n", ">-\n", "'", '"', "\\x", "%YAML 1.1\n", "---\n", "...\n", "#", "<<: ", "1e999", "\t",
        "\u2028", "\ufeff",
        "peer: ", "resources: ", "gpus: ", "vram: 1GiB", "location: ", "size", "9" * 30, "\U0001f600",
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200) | st.lists(FRAGMENTS, max_size=30).map("".join).map(str.encode))
def test_whatever_the_bytes_it_is_an_ensemble_or_a_coded_error(content: bytes) -> None:
    _is_read(content)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_file_that_was_changed_anywhere_is_an_ensemble_or_a_coded_error(data: st.DataObject) -> None:
    content = bytearray(EXAMPLE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=4) | FRAGMENTS.map(str.encode))
    _is_read(bytes(content))


def _is_read(content: bytes) -> None:
    failure: DocumentError | None = None
    try:
        request = parse_ensemble(content, "e.yaml").asked(deadline=1.0)
        assert from_map(to_map(request), EnsembleRequest) == request
    except DocumentError as error:
        failure = error
    if failure is not None:
        assert failure.code == "bad_ensemble"
        assert 1 <= failure.line <= len(content) + 2
        assert failure.message.isprintable()


def test_reading_one_does_not_load_libp2p() -> None:
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import dms_peer.config.ensemble\n"
        "sys.exit(sorted(name for name in sys.modules if name.partition('.')[0] in ('libp2p', 'multiaddr', 'httpx')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "[]\n")

from __future__ import annotations

from pathlib import Path

import pytest

from dms_peer.config.ensemble import parse_ensemble, read_ensemble_file
from dms_peer.errors import DocumentError
from dms_protocols.messages.job import Execution, Job, JobFile, JobPort
from dms_resources.components import GPUVendor
from dms_resources.demands import PortDemand
from dms_resources.units import GIB, Cores

NODES = """
request:
  - node_id: web
    resources: {cpu: {cores: 1}, ram: {size: 1GiB}, disk: {size: 1GiB}}
  - node_id: idle
    resources: {cpu: {cores: 1}, ram: {size: 1GiB}, disk: {size: 1GiB}}
"""
JOBS = (
    NODES
    + """
jobs:
  web:
    execution:
      type: docker
      image: localhost/tiny:1
      cmd: [sh, -c, "echo $NAME\\n"]
      environment: {NAME: "a b", OTHER: ""}
      working_directory: /srv
    ports:
      - {private: 80, public: dynamic}
      - {private: 22, public: 16400}
      - {private: 9000}
    files:
      - name: run.sh
        executable: true
        content: |
          #!/bin/sh
          echo hello
    network: outbound
"""
)
PEER = "12D3KooWC4T1AXU2s2YBgGJ2FeaYVtsKoHZWJeubnWe9SnuSE7Zb"
DMS = """
version: "V1"
allocations:
  web:
    type: task
    executor: docker
    resources: {cpu: {cores: 1}, gpus: [], ram: {size: 1}, disk: {size: 0.5}}
    execution: {type: docker, image: "alpine:3.20", cmd: ["echo", "hi"]}
nodes:
  node1:
    allocations: [web]
    peer: 12D3KooWC4T1AXU2s2YBgGJ2FeaYVtsKoHZWJeubnWe9SnuSE7Zb
"""


def test_a_job_is_read_with_all_its_fields() -> None:
    ensemble = parse_ensemble(JOBS.encode(), "e.yaml")
    assert list(ensemble.jobs) == ["web"]
    assert ensemble.jobs["web"].job == Job(
        execution=Execution(
            type="docker",
            image="localhost/tiny:1",
            cmd=("sh", "-c", "echo $NAME\n"),
            environment=("NAME=a b", "OTHER="),
            working_directory="/srv",
        ),
        ports=(JobPort(private=22, public=16400), JobPort(private=9000)),
        files=(JobFile(name="run.sh", content=b"#!/bin/sh\necho hello\n", executable=True),),
        network="outbound",
    )
    assert ensemble.jobs["web"].dynamic == (80,)


def test_a_node_asks_for_what_its_job_needs_of_a_provider() -> None:
    web, idle = parse_ensemble(JOBS.encode(), "e.yaml").nodes
    assert (web.executors, web.public_ports) == (("docker",), PortDemand(static=(16400,), dynamic=1))
    assert (idle.executors, idle.public_ports) == ((), PortDemand())


def test_files_are_read_beside_the_ensemble(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\0\1")
    text = JOBS.replace("network: outbound", "").rstrip() + "\n      - {name: data, path: data}\n"
    (tmp_path / "e.yaml").write_text(text)
    files = read_ensemble_file(tmp_path / "e.yaml").jobs["web"].job.files
    assert [file.content for file in files if file.name == "data"] == [b"\0\1"]
    with pytest.raises(DocumentError) as caught:
        parse_ensemble(text.encode(), "e.yaml")
    assert caught.value.field.endswith("files[1].path")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("  web:\n    execution", "  other:\n    execution", "jobs"),
        ("type: docker", "kind: docker", "jobs.web.execution.kind"),
        ('cmd: [sh, -c, "echo $NAME\\n"]', "cmd: sh -c true", "jobs.web.execution.cmd"),
        ('OTHER: ""', "A-B: x", "jobs.web"),
        ("private: 9000", "private: 80", "jobs.web"),
        ("private: 9000", "private: 0", "jobs.web.ports[2].private"),
        ("public: 16400", "public: yes", "jobs.web.ports[1].public"),
        ("name: run.sh", "name: ../x", "jobs.web"),
        ("executable: true", "path: x", "jobs.web.files[0]"),
        ("network: outbound", "network: host", "jobs.web.network"),
        ("network: outbound", "privileged: true", "jobs.web.privileged"),
        ("- node_id: web\n", "- node_id: web\n    executors: [command]\n", "jobs.web.execution"),
    ],
)
def test_an_invalid_job_is_named_with_its_place(old: str, new: str, field: str) -> None:
    assert old in JOBS
    with pytest.raises(DocumentError) as caught:
        parse_ensemble(JOBS.replace(old, new).encode(), "e.yaml")
    assert (caught.value.code, caught.value.field) == ("bad_ensemble", field)
    assert caught.value.line > 0


def test_a_job_that_is_too_large_is_refused_here() -> None:
    many = ", ".join(['"' + "x" * 30_000 + '"'] * 3)
    with pytest.raises(DocumentError):
        parse_ensemble(JOBS.replace('[sh, -c, "echo $NAME\\n"]', f"[{many}]").encode(), "e.yaml")


# The DMS's own


def test_an_ensemble_of_the_dms_is_read_as_it_is() -> None:
    ensemble = parse_ensemble(DMS.encode(), "v1.yaml")
    (node,) = ensemble.nodes
    assert (node.node_id, node.executors) == ("node1", ("docker",))
    assert node.resources.cpu.cores == Cores.of(1)
    assert (node.resources.ram.size, node.resources.disk.size) == (GIB, GIB // 2)
    assert ensemble.pins == {"node1": PEER}
    assert ensemble.jobs["node1"].job.execution == Execution(type="docker", image="alpine:3.20", cmd=("echo", "hi"))
    assert ensemble.warnings == ("sizes without a unit are read as GiB, as by the present DMS; older ones meant MB",)


def test_several_allocations_share_a_named_peer_and_ports_go_to_theirs() -> None:
    text = DMS.replace("allocations: [web]", "allocations: [web, db]").replace(
        "nodes:",
        """  db:
    executor: docker
    resources: {cpu: {cores: 0.5}, ram: {size: 512MiB}, disk: {size: 1}, gpus: [{vram: 8, vendor: NVIDIA, index: 1}]}
    execution: {type: docker, image: "db:1"}
    dns_name: database
nodes:""",
    )
    text += "    ports: [{private: 80, allocation: web}, {private: 5432, public: 16500, allocation: db}]\n"
    ensemble = parse_ensemble(text.encode(), "v1.yaml")
    web, db = ensemble.nodes
    assert (web.node_id, db.node_id) == ("web", "db")
    assert ensemble.pins == {"web": PEER, "db": PEER}
    assert (web.public_ports, ensemble.jobs["web"].dynamic) == (PortDemand(dynamic=1), (80,))
    assert db.public_ports == PortDemand(static=(16500,))
    assert (db.resources.gpus[0].vram, db.resources.gpus[0].vendor) == (8 * GIB, GPUVendor.NVIDIA)
    assert {warning.rpartition(": ")[2] for warning in ensemble.warnings[1:]} == {
        "jobs do not find each other by name",
        "a GPU is requested by its vendor, model and VRAM, not by its number",
    }


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('version: "V1"', 'version: "V2"', "version"),
        ('version: "V1"', 'version: "V1"\nsubnet: {join: true}', "subnet.join"),
        ('version: "V1"', 'version: "V1"\nsupervisor: {strategy: OneForOne}', "supervisor"),
        ('version: "V1"', 'version: "V1"\nedge_constraints: [{edges: [a, b], rtt: 10}]', "edge_constraints"),
        ('version: "V1"', 'version: "V1"\nkeys: {a: {type: ssh, file: x, dest: /y}}', "keys"),
        ("    type: task", "    type: job", "allocations.web.type"),
        ("    type: task", "    healthcheck: {type: http}", "allocations.web.healthcheck"),
        ("    type: task", "    volumes: [{type: nfs}]", "allocations.web.volumes"),
        ("    type: task", "    depends_on: [db]", "allocations.web.depends_on"),
        ("    type: task", "    provision: [a]", "allocations.web.provision"),
        ("    type: task", "    failure_recovery: one_for_one", "allocations.web.failure_recovery"),
        ("executor: docker", "executor: firecracker", "allocations.web.executor"),
        ("type: docker, image", "privileged: true, type: docker, image", "allocations.web.execution.privileged"),
        ("type: docker, image", "type: firecracker, image", "allocations.web.execution.type"),
        ("allocations: [web]", "allocations: [other]", "nodes.node1.allocations"),
        ("allocations: [web]", "allocations: [web]\n    redundancy: 2", "nodes.node1.redundancy"),
        ("allocations: [web]", "allocations: [web]\n    unknown: 2", "nodes.node1.unknown"),
        ("allocations: [web]", "allocations: []", "nodes"),
    ],
)
def test_what_cannot_be_done_is_refused_at_its_line(old: str, new: str, field: str) -> None:
    assert old in DMS
    with pytest.raises(DocumentError) as caught:
        parse_ensemble(DMS.replace(old, new).encode(), "v1.yaml")
    assert caught.value.field == field
    assert caught.value.line > 0


def test_allocations_that_share_a_machine_need_a_named_peer() -> None:
    text = DMS.replace(f"    peer: {PEER}\n", "").replace("[web]", "[web, web]")
    with pytest.raises(DocumentError) as caught:
        parse_ensemble(text.encode(), "v1.yaml")
    assert "share a machine" in caught.value.message

#!/usr/bin/env python3
"""A program for the executor `command`: runs the `cmd` of a job in a scope of systemd, as another user.

    executors:
      batch:
        kind: command
        command: [/usr/local/bin/systemd_run.py, guest]
        limit: false

The argument is the user. systemd gives the scope the CPU, memory and processes of the lease. A scope is made of child
processes, so the executor finds and ends them; a service would be systemd's child and live on. Runs as root only, which
may make scopes for others.
"""

import json
import os
import sys

# A variable of the job must not be one that systemd-run or the dynamic linker of a privileged program reads.
REFUSED = ("LD_", "SYSTEMD_", "DBUS_", "DMS_")
TASKS = 1024


def main() -> None:
    user = sys.argv[1]
    document = json.load(sys.stdin)
    execution = document["job"]["execution"]
    command = [*execution.get("entrypoint", []), *execution.get("cmd", [])]
    variables = execution.get("environment", [])
    if not command:
        refuse("the job has no cmd")
    if any(entry.startswith(REFUSED) for entry in variables):
        refuse(f"variables that begin with {', '.join(REFUSED)} are refused")
    resources = document["lease"]["resources"]
    reaches_nothing = document["job"].get("network", "none") == "none"
    network = ["--property=IPAddressDeny=any", "--property=IPAddressAllow=localhost"] if reaches_nothing else []
    scope = [
        "systemd-run",
        "--scope",
        "--quiet",
        "--collect",
        f"--unit={document['name']}",
        f"--uid={user}",
        f"--property=CPUQuota={resources['cpu']['cores'] * 100:g}%",
        f"--property=MemoryMax={resources['ram']['size']}",
        "--property=MemorySwapMax=0",
        f"--property=TasksMax={TASKS}",
        *network,
        "--working-directory=/tmp",
        # What follows is the job's: no option of it is read.
        "--",
        "env",
        *variables,
        # `env` takes words with = in them for variables, and the job's command may be one.
        "sh",
        "-c",
        'exec "$@"',
        "job",
        *command,
    ]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    ports = [{"port": port["private"], "host": "127.0.0.1"} for port in document["job"].get("ports", [])]
    print(json.dumps({"ready": True, "endpoints": ports}), flush=True)
    os.execvp(scope[0], scope)


def refuse(problem: str) -> None:
    print(json.dumps({"error": problem}), flush=True)
    sys.exit(1)


if __name__ == "__main__":
    main()

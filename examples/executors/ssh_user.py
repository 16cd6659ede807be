#!/usr/bin/env python3
"""A program for the executor `command`: makes a user who may log in by ssh for as long as the job lasts.

    executors:
      ssh: {kind: command, command: [/usr/local/bin/ssh_user.py], limit: false}

The job brings its public keys in a file `authorized_keys` and names port 22. The holder of the lease reaches the
machine's ssh server through a tunnel; its name is the first line of the job's output. Runs as root. It kills the
processes of the user and removes the user when the job is stopped. Users whose program was killed before it could do so
are removed when the next one begins. Give the group of these users limits in systemd (user-.slice) or in limits.conf.
"""

import json
import os
import pwd
import signal
import subprocess
import sys

PREFIX = "dms-"
LONGEST_KEYS = 16 * 1024


def main() -> None:
    document = json.load(sys.stdin)
    keys = next((one["path"] for one in document["files"] if one["name"] == "authorized_keys"), None)
    if keys is None:
        refuse("the job has no file authorized_keys")
    if [port["private"] for port in document["job"].get("ports", [])] != [22]:
        refuse("the job must name port 22, and no other")
    remove_forgotten()
    user = PREFIX + document["name"].replace(":", "-")[-24:].lower()
    # Both signals end the wait below; the job may be stopped before it is ready.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    # The comment names the folder of the job: when that is gone, so is the job.
    made = subprocess.run(["useradd", "--create-home", "--comment", document["directory"], "--", user])
    if made.returncode:
        refuse("the user cannot be made")
    try:
        allow(user, keys)
        print(json.dumps({"ready": True, "endpoints": [{"port": 22, "host": "127.0.0.1"}]}), flush=True)
        print(f"user {user}", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    finally:
        remove(user)


def allow(user: str, keys: str) -> None:
    with open(keys, "rb") as file:
        content = file.read(LONGEST_KEYS)
    entry = pwd.getpwnam(user)
    folder = os.path.join(entry.pw_dir, ".ssh")
    os.mkdir(folder, 0o700)
    path = os.path.join(folder, "authorized_keys")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    for name in (folder, path):
        os.chown(name, entry.pw_uid, entry.pw_gid)


def remove_forgotten() -> None:
    for entry in pwd.getpwall():
        if entry.pw_name.startswith(PREFIX) and entry.pw_gecos.startswith("/") and not os.path.exists(entry.pw_gecos):
            remove(entry.pw_name)


def remove(user: str) -> None:
    subprocess.run(["pkill", "-KILL", "-u", user])
    subprocess.run(["userdel", "--remove", "--", user])


def refuse(problem: str) -> None:
    print(json.dumps({"error": problem}), flush=True)
    sys.exit(1)


if __name__ == "__main__":
    main()

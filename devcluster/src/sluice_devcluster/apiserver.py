"""A real API server for integration tests: etcd and kube-apiserver as plain processes on loopback, without root.

There is no node in it, so no pod ever runs; what the API server itself does (validation, server-side apply, watches,
role-based access control and, with the controller manager, garbage collection) is the real thing.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from sluice_devcluster import control_plane as cp
from sluice_devcluster import pki
from sluice_devcluster.errors import DevClusterError
from sluice_devcluster.files import write_file
from sluice_devcluster.ports import free_ports
from sluice_devcluster.programs import built_programs

PREFIX = "sluice-control-plane-"
LOCK = ".lock"
SERVICE_RANGE = "10.0.0.0/16"
"""Room for 65,000 Services: a /24 is full after 253 pools."""
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}
"""Who did what, of service accounts only: what people and tests do is not asked about, and would be most of it."""
READY_DEADLINE_S = 60.0
END_DEADLINE_S = 10.0


class ControlPlane:
    """A control plane that lives as long as the `with` block.

    Attributes, valid inside the block: `url` (https://127.0.0.1:port), `token` (a bearer token of the administrator),
    `ca` (the authority's certificate file) and `kubeconfig` (a file with all of these). Raises DevClusterError when the
    programs are not built or do not start.
    """

    def __init__(self, *, controller_manager: bool = False, audited: bool = False) -> None:
        """`audited`: write down each request of a service account, for `audit_log`."""
        self._with_controllers = controller_manager
        self._audited = audited
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.token = secrets.token_urlsafe(24)

    def __enter__(self) -> Self:
        self._programs = built_programs()
        remove_abandoned()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = _locked(self.folder)
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def ca(self) -> Path:
        return self.folder / "pki" / "ca.crt"

    @property
    def audit_log(self) -> Path:
        """One JSON object (audit.k8s.io/v1 Event) a line; each is there before its request is answered."""
        return self.folder / "audit.log"

    def log(self, name: str) -> str:
        """What a part (`etcd`, `kube-apiserver`, `kube-controller-manager`) has written."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def pid(self, name: str) -> int:
        """The process of a part, by the same names, for those who measure it."""
        return self._processes[name].pid

    def _start(self) -> None:
        etcd_port, peer_port, api_port, controllers_port = free_ports(4)
        at = cp.Endpoints(etcd_port, peer_port, api_port, bind="127.0.0.1", advertise="127.0.0.1")
        self.url = f"https://127.0.0.1:{api_port}"
        folder = self.folder / "pki"
        pki.write_pki(folder, pki.component_identities("none", pki.api_server_hosts()))
        write_file(self.folder / "tokens.csv", f'{self.token},admin,admin,"system:masters"\n', mode=0o600)
        authority = self.ca.read_bytes()
        write_file(self.kubeconfig, pki.kubeconfig(self.url, authority, {"token": self.token}), mode=0o600)
        self._run("etcd", cp.etcd_command(self._programs, self.folder / "etcd", at))
        flags = [f"--token-auth-file={self.folder / 'tokens.csv'}", "--endpoint-reconciler-type=none"]
        if not self._with_controllers:
            # Nothing would make the service accounts that this plug-in demands of every pod.
            flags.append("--disable-admission-plugins=ServiceAccount")
        if self._audited:
            policy = self.folder / "audit-policy.json"
            policy.write_text(json.dumps(AUDIT_POLICY))  # YAML, as all JSON is
            self.audit_log.touch()
            flags += [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}"]
        self._run("kube-apiserver", cp.api_server_command(self._programs, folder, at, SERVICE_RANGE) + flags)
        self._wait_ready()
        if self._with_controllers:
            config = self.folder / "controller-manager.kubeconfig"
            user = pki.certificate_user(folder, "controller-manager")
            write_file(config, pki.kubeconfig(self.url, authority, user), mode=0o600)
            scratch = self.folder / "controller-manager"
            command = cp.controller_manager_command(self._programs, folder, config, scratch, controllers_port)
            self._run("kube-controller-manager", command)

    def _run(self, name: str, command: list[str]) -> None:
        # A killed test run must not leave servers behind.
        guard = [shutil.which("setpriv") or "", "--pdeathsig=KILL"] if shutil.which("setpriv") else []
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                guard + command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder)},
            )

    def _wait_ready(self) -> None:
        context = ssl.create_default_context(cafile=str(self.ca))
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {self.token}"})
        end = time.monotonic() + READY_DEADLINE_S
        while True:
            try:
                with urllib.request.urlopen(request, timeout=2.0, context=context):
                    return
            except OSError as error:
                for name, process in self._processes.items():
                    if process.poll() is not None:
                        last = self.log(name).strip().splitlines()[-3:]
                        raise DevClusterError(f"{name} ended with status {process.returncode}: {last}") from error
                if time.monotonic() > end:
                    raise DevClusterError(f"the API server is not ready after {READY_DEADLINE_S:.0f} s") from error
            time.sleep(0.05)

    def _end(self) -> None:
        # All that they hold is thrown away: there is nothing to end gracefully.
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(END_DEADLINE_S)
        self._processes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def _locked(folder: Path) -> TextIO:
    """The folder's lock, held as long as the file is open: so also until its process is killed."""
    lock = (folder / ".new").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Under its name only when it is held: no other process may take the folder for an abandoned one.
    (folder / ".new").rename(folder / LOCK)
    return lock


def remove_abandoned() -> None:
    """Remove what control planes left whose test run was killed."""
    for file in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError), file.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(file.parent, ignore_errors=True)

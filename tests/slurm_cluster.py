"""A real SLURM on this machine for the tests: munged, slurmctld and a slurmd for each node, in namespaces of their own.

All daemons and jobs are children of one process that lives as long as its standard input is open: however the tests
end, the kernel then takes them away. The nodes have host names of their own, all at 127.0.0.1, and GPUs that are copies
of /dev/null. By hand, `python tests/slurm_cluster.py` prints the variable to set and waits for the end of its input.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
# The second node has fewer GPUs, so that a job can be given unequal ones.
GPUS = {"n1": 2, "n2": 1}
CPUS = 8  # as SLURM believes

CONFIG = """
ClusterName=test
SlurmctldHost=ctl(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
ReturnToService=2
KillWait=5
MinJobAge=3600
GresTypes=gpu
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
START = """
set -e
hostname ctl
mount --bind {folder}/hosts /etc/hosts
munged --foreground --force --key-file={folder}/munge.key --socket={folder}/munge.socket \
    --pid-file={folder}/munged.pid --log-file={folder}/munged.log --seed-file={folder}/munged.seed &
while [ ! -S {folder}/munge.socket ]; do sleep 0.1; done
slurmctld -D >{folder}/slurmctld.out 2>&1 &
for node in {nodes}; do
    unshare --uts sh -c "hostname $node && exec slurmd -D -N $node" >{folder}/slurmd-$node.out 2>&1 &
done
cat >/dev/null
"""


class Cluster:
    """Two nodes. `run` is for SLURM's commands; they, and the jobs, start in `folder`."""

    def __init__(self, state: Path, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **variables, "SLURM_CONF": str(state / "slurm.conf")}

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """One command with these variables in its environment; its output as text."""
        environment = {**self.environment, **variables}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def submit(self, *arguments: str, **variables: str) -> str:
        """sbatch; returns the number of the job."""
        return self.run("sbatch", "--parsable", *arguments, **variables).stdout.strip()

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by name."""
        return dict(re.findall(r"(\w[\w/:]*)=(\S*)", self.run("scontrol", "show", "job", job).stdout))

    def wait(self, job: str, seconds: float) -> dict[str, str]:
        """Wait until a job has ended for good; what `show` says then."""
        end = time.monotonic() + seconds
        while (state := self.show(job))["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
            assert time.monotonic() < end, (
                f"job {job} is {state['JobState']} after {seconds} s: {self.log(job)}"
            )
            time.sleep(1)
        return state

    def log(self, job: str) -> str:
        """What the batch script of a job printed."""
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def logs(self, job: str) -> str:
        """What the nodes of a job printed."""
        return "".join(path.read_text() for path in sorted((self.folder / "logs" / job).glob("*.log")))


def what_is_missing() -> str | None:
    """Why no cluster can be started here, or None."""
    if sys.platform != "linux":
        return "SLURM is for Linux"
    if os.geteuid() != 0:
        return "only root can start a SLURM with nodes of its own"
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        return f"not installed: {', '.join(missing)}; apt-get install slurmctld slurmd slurm-client munge"
    probe = ["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    if subprocess.run(probe, capture_output=True).returncode:
        return "no namespaces for nodes on this machine (unshare is refused)"
    return None


@contextlib.contextmanager
def cluster(folder: Path, **variables: str) -> Iterator[Cluster]:
    """A cluster whose jobs start in `folder` with these variables; all of it is gone afterwards."""
    state = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has at most 107 characters
    process = None
    try:
        _configure(state)
        command = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        script = START.format(folder=state, nodes=" ".join(GPUS))
        process = subprocess.Popen(
            [*command, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=open(state / "start.log", "w"),  # noqa: SIM115  the child's
            env={**os.environ, "SLURM_CONF": str(state / "slurm.conf")},
        )
        made = Cluster(state, folder, variables)
        _wait_for_nodes(made, state)
        yield made
    finally:
        if process:
            process.kill()
            process.wait()
        shutil.rmtree(state, ignore_errors=True)


def _configure(state: Path) -> None:
    for name in ("state", *(f"spool-{node}" for node in GPUS)):
        (state / name).mkdir()
    state.chmod(0o755)
    (state / "munge.key").write_bytes(os.urandom(1024))
    (state / "munge.key").chmod(0o600)
    port, *ports = _free_ports(1 + len(GPUS))
    config, gres, hosts = CONFIG.format(port=port, folder=state), "AutoDetect=off\n", "127.0.0.1 localhost"
    for (node, gpus), node_port in zip(GPUS.items(), ports, strict=True):
        config += (
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={node_port} CPUs={CPUS} Sockets=1 "
            f"CoresPerSocket={CPUS} ThreadsPerCore=1 RealMemory=8000 Gres=gpu:{gpus} State=UNKNOWN\n"
        )
        for number in range(gpus):
            os.mknod(state / f"{node}-gpu{number}", 0o20666, os.makedev(1, 3))
            gres += f"NodeName={node} Name=gpu File={state}/{node}-gpu{number}\n"
        hosts += f" {node}"
    (state / "slurm.conf").write_text(config)
    (state / "gres.conf").write_text(gres)
    (state / "hosts").write_text(Path("/etc/hosts").read_text() + hosts + "\n")


def _free_ports(count: int) -> list[int]:
    """Ports outside of the range that the jobs use for themselves."""
    found: list[int] = []
    for port in range(17001 + os.getpid() % 1000, 20000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def _wait_for_nodes(made: Cluster, state: Path) -> None:
    end = time.monotonic() + 60
    while made.run("sinfo", "-h", "-o", "%T", check=False).stdout.split() != ["idle"]:
        if time.monotonic() > end:
            logs = {path.name: path.read_text()[-2000:] for path in state.glob("*.log")}
            raise RuntimeError(f"SLURM did not come up in 60 s: {json.dumps(logs, indent=1)}")
        time.sleep(0.5)


if __name__ == "__main__":
    with cluster(Path.cwd()) as started:
        print(f"export SLURM_CONF={started.environment['SLURM_CONF']}", flush=True)
        sys.stdin.read()

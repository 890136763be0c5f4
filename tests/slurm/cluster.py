"""A real SLURM cluster of two nodes on this machine, that tests start and stop.

``netns`` (root, outside most containers): each node has its own host name, network, hosts file and
/dev/shm, as on a cluster. ``multi`` (anybody): the nodes are processes on one address. Nothing
under /etc is touched.
By hand, to look around:  python -m tests.slurm.cluster /tmp/c  (ends with Ctrl-D).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client munge libpmix-dev iproute2"
"""Of Debian. libpmix-dev: srun's pmix plugin loads libpmix.so, the name without a number."""

NODES = ("node1", "node2")
CPUS = 4  # a node's, as it claims: more than there are, so that no test waits for a core
MEMORY_MB = 16000
GPUS, GPU_TYPE = 2, "fake"
GRACE_S = 60  # between a preemption and its kill; SLURM's default is 0
MULTI, NETNS = "multi", "netns"

_SYSTEM_PATH = "/usr/sbin:/sbin"


def missing() -> str:
    """Return what is not installed, in one line; empty if nothing is missing."""
    programs = ["slurmctld", "slurmd", "sbatch", "munged", "mungekey"]
    if os.getuid() == 0:
        programs.append("ip")
    absent = [name for name in programs if shutil.which(name, path=_path()) is None]
    if not list(Path("/usr/lib").glob("*/slurm-wlm/mpi_pmix.so")):
        absent.append("srun's pmix plugin")
    elif not list(Path("/usr/lib").glob("*/pmix2/lib/libpmix.so")):
        absent.append("libpmix.so")
    return f"{', '.join(absent)} missing: apt-get install {PACKAGES}" if absent else ""


def can_make_networks() -> bool:
    """Return whether this process may make nodes of their own: root may, in most containers not."""
    if os.getuid() != 0:
        return False
    probe = ["unshare", "--net", "--uts", "--mount", "ip", "link", "add", "probe", "type", "bridge"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _path() -> str:
    return f"{os.environ['PATH']}:{_SYSTEM_PATH}"


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Return once a condition holds; fail with `what` was waited for when the time is over."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.05)


class Cluster:
    """A running cluster.

    Attributes
    ----------
    folder : Path
        Its state; a short path, since sockets lie in it.
    mode : str
        `NETNS` or `MULTI`.
    environment : dict
        Variables that clients need.
    """

    def __init__(self, folder: Path, mode: str) -> None:
        self.folder, self.mode = folder, mode
        # Two test runs on one machine have a cluster each; one that was killed leaves its network.
        taken = {path.name for path in Path("/sys/class/net").iterdir()}
        numbers = ((os.getpid() + k) % 250 for k in range(250))
        number = next(n for n in numbers if f"gm{n}" not in taken)
        self._network, self._name, self._port = (
            f"10.77.{number}",
            f"gm{number}",
            20000 + 10 * number,
        )
        self._undo: list[str] = []
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    # --- what tests do with it ----------------------------------------------------------------

    def run(self, *command: str, check: bool = True) -> str:
        """Run a SLURM command and return what it printed."""
        done = subprocess.run(
            command, env={**os.environ, "PATH": _path(), **self.environment},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """Return the fields that scontrol shows of a job; of an array, those of its first line."""
        line = self.run("scontrol", "show", "job", "--oneliner", job_id).splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def states(self, job_id: str) -> list[str]:
        """Return the states of a job, or of all tasks of an array."""
        lines = self.run("scontrol", "show", "job", "--oneliner", job_id).splitlines()
        return [word[9:] for line in lines for word in line.split() if word[:9] == "JobState="]

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float = 60) -> None:
        """Return once a job, or every task of an array, is in one of these states."""
        try:
            wait_until(
                lambda: set(self.states(job_id)) <= set(states), f"job {job_id} {states}", timeout_s
            )
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.states(job_id)}\n{self.logs()}") from None

    def wait_for_end(self, job_id: str, timeout_s: float = 60) -> str:
        """Return the state in which a job ends."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait_for_state(job_id, *ends, timeout_s=timeout_s)
        return self.states(job_id)[0]

    def restarts(self, job_id: str) -> int:
        """Return how often a job went back to the queue."""
        return int(self.job(job_id)["Restarts"])

    def cancel_all(self) -> None:
        """End all jobs."""
        self.run("scancel", f"--user={os.getuid()}", check=False)
        wait_until(lambda: not self.run("squeue", "--noheader"), "jobs to end")

    @property
    def address(self) -> str:
        """The address at which jobs find a server of this machine."""
        return f"{self._network}.254" if self.mode == NETNS else "127.0.0.1"

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted((self.folder / "log").glob("*"))
        )

    # --- start and end ------------------------------------------------------------------------

    def start(self) -> None:
        """Start munge, the controller and the nodes, and wait until all are idle."""
        own = [f"{what}.{node}" for what in ("spool", "tmp") for node in NODES]
        for name in ("munge", "state", "log", "pid", "gpus", *own):
            (self.folder / name).mkdir(parents=True)
        for open_to_all in (self.folder, self.folder / "munge"):  # munge asks for it
            open_to_all.chmod(0o755)
        self._configure()
        munge = self.folder / "munge"
        self._start(
            "munged", f"--key-file={munge}/key", f"--socket={munge}/socket",
            f"--pid-file={self.folder}/pid/munged", f"--log-file={self.folder}/log/munged",
            f"--seed-file={munge}/seed",
        )  # fmt: skip
        if self.mode == NETNS:
            self._make_network()
        self._start("slurmctld", "-c", "-f", self.environment["SLURM_CONF"])
        for node in NODES:
            self.start_node(node)
        wait_until(self.idle, "all nodes idle")

    def idle(self) -> bool:
        """Return whether all nodes are idle."""
        seen = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False)
        return all(f"{node} idle\n" in seen for node in NODES)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        command = ["slurmd", "-N", node, "-f", self.environment["SLURM_CONF"]]
        if self.mode == MULTI:
            # SLURM's PMIx would take the host's name for the node's, and find no ranks under it.
            self._start("env", f"PMIX_HOSTNAME={node}", *command)
            return
        script = (
            'hostname "$1"; mount --bind "$2" /etc/hosts; mount -t tmpfs -o mode=1777 tmpfs '
            '/dev/shm; shift 2; exec "$@"'
        )
        self._start(
            "nsenter", f"--net=/run/netns/{self._name}-{node}", "unshare", "--uts", "--mount",
            "--propagation", "private", "sh", "-c", script, "-", node,
            str(self.folder / "hosts"), *command,
        )  # fmt: skip

    def signal_daemon(self, node: str, number: signal.Signals) -> None:
        """Kill or stop a node's slurmd: the node does not answer; its tasks run on, alone."""
        os.kill(int((self.folder / "pid" / f"slurmd.{node}").read_text()), number)

    def stop(self) -> None:
        """End all jobs, then the daemons, then the network; safe on a cluster half started."""
        if (self.folder / "pid" / "slurmctld").exists():
            self.run("scancel", f"--user={os.getuid()}", check=False)
            with suppress(AssertionError):
                wait_until(lambda: not self.run("squeue", "-h", check=False), "jobs to end", 15)
        for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munged"):
            self._end(name)
        for command in self._undo:
            _quietly("ip", *command.split())
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, name: str) -> None:
        pid_file = self.folder / "pid" / name
        if not pid_file.exists() or not (text := pid_file.read_text().strip()):
            return
        with suppress(ProcessLookupError, AssertionError):
            os.kill(int(text), signal.SIGTERM)
            wait_until(lambda: not _alive(int(text)), f"{name} to end", 10)
        with suppress(ProcessLookupError):
            os.kill(int(text), signal.SIGKILL)

    def _start(self, *command: str) -> None:
        """Run a daemon's start, which returns when it is in the background."""
        done = subprocess.run(
            command, env={**os.environ, "PATH": _path(), **self.environment}, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{command[0]} does not start\n{self.logs()}"

    def _make_network(self) -> None:
        """Make a bridge and a network of its own for each node."""
        bridge = self._name
        self._ip(f"link add {bridge} type bridge", undo=f"link del {bridge}")
        self._ip(f"addr add {self._network}.254/24 dev {bridge}")
        self._ip(f"link set {bridge} up")
        hosts = [Path("/etc/hosts").read_text()]
        for number, node in enumerate(NODES, 1):
            space, link, address = f"{self._name}-{node}", f"{bridge}p{number}", f".{number}"
            hosts.append(f"{self._network}{address} {node}")
            self._ip(f"netns add {space}", undo=f"netns del {space}")
            self._ip(
                f"link add {link} type veth peer name eth0 netns {space}", undo=f"link del {link}"
            )
            self._ip(f"link set {link} master {bridge}")
            self._ip(f"link set {link} up")
            self._ip(f"-n {space} addr add {self._network}{address}/24 dev eth0")
            self._ip(f"-n {space} link set lo up")
            self._ip(f"-n {space} link set eth0 up")
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")

    def _ip(self, command: str, undo: str = "") -> None:
        subprocess.run(["ip", *command.split()], check=True)
        if undo:
            self._undo.insert(0, undo)

    def _configure(self) -> None:
        folder, me = self.folder, _me()
        subprocess.run(
            ["mungekey", "--create", f"--keyfile={folder}/munge/key"],
            env={**os.environ, "PATH": _path()}, check=True,
        )  # fmt: skip
        host = os.uname().nodename.split(".")[0]
        controller = f"{self._network}.254" if self.mode == NETNS else "127.0.0.1"
        nodes = [
            f"NodeName={node} CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:{GPU_TYPE}:{GPUS} "
            "State=UNKNOWN "
            + (
                f"NodeHostname={node} NodeAddr={self._network}.{number} Port={self._port + number}"
                if self.mode == NETNS
                else f"NodeHostname={host} NodeAddr=127.0.0.1 Port={self._port + number}"
            )
            for number, node in enumerate(NODES, 1)
        ]
        everywhere = f"Nodes={','.join(NODES)} MaxTime=INFINITE State=UP"
        (folder / "slurm.conf").write_text(
            f"""
ClusterName=galmer
SlurmctldHost={host}({controller})
SlurmctldPort={self._port}
SlurmUser={me}
SlurmdUser={me}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
TmpFS={folder}/tmp.%n
SlurmctldPidFile={folder}/pid/slurmctld
SlurmdPidFile={folder}/pid/slurmd.%n
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd.%n
PlugStackConfig={folder}/none
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=900
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=15
GresTypes=gpu
{chr(10).join(nodes)}
PartitionName=batch {everywhere} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={GRACE_S}
PartitionName=urgent {everywhere} PriorityTier=10 PreemptMode=OFF
"""
        )
        (folder / "none").touch()
        # Never used; without it slurmd looks for control groups that this machine may not have.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        # slurmd wants a device for each GPU, and does no more than look whether it is there.
        for number in range(GPUS):
            (folder / "gpus" / str(number)).symlink_to("/dev/null")
        (folder / "gres.conf").write_text(
            f"NodeName={','.join(NODES)} Name=gpu Type={GPU_TYPE} "
            f"File={folder}/gpus/[0-{GPUS - 1}]\n"
        )


def _me() -> str:
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def _alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has reaped is gone."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _quietly(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=False)


@contextmanager
def running(folder: Path, mode: str | None = None) -> Iterator[Cluster]:
    """Give a running cluster and stop it after."""
    cluster = Cluster(folder, mode or (NETNS if can_make_networks() else MULTI))
    with ExitStack() as stack:
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


if __name__ == "__main__":
    with running(Path(sys.argv[1])) as shown:
        print(f"export SLURM_CONF={shown.environment['SLURM_CONF']}", flush=True)
        sys.stdin.read()

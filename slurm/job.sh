# shellcheck shell=bash
# Sourced by every job script: the site's facts, the launcher, and what happens when a job must stop.
#
# SLURM runs a copy of the job script from its spool, so everything is found from where sbatch was
# called: the checkout.
set -euo pipefail
warned=no child=  # of live, below; here because the signal may come at any moment
trap 'warned=yes; [ -z "$child" ] || kill -USR1 "$child"' USR1
cd "$SLURM_SUBMIT_DIR"
die() { echo "slurm: $*" >&2; exit 2; }
[ -e slurm/job.sh ] || die "$SLURM_SUBMIT_DIR is not the checkout: call sbatch there"
[ -e slurm/site.sh ] || die "no slurm/site.sh in $SLURM_SUBMIT_DIR: copy slurm/site.example.sh and fill it in"
# What fails in it fails here; modules and conda read variables that are not set.
trap 'die "slurm/site.sh or its load_environment fails on $(hostname)"' EXIT
set +u
# shellcheck source=slurm/site.example.sh
source slurm/site.sh
load_environment
set -u
trap - EXIT
command -v galmerhpc > /dev/null || die "no galmerhpc on $(hostname) after load_environment of slurm/site.sh"

# --- Tasks and cores ------------------------------------------------------------------------------
# CPUs: sbatch's --cpus-per-task, else the node's cores over its tasks. Since SLURM 22.05 srun does not
# take --cpus-per-task from sbatch, and binds each task to one core.
on_every_gpu() {  # one task each; TASKS_PER_NODE where SLURM knows of no GPUs
  # Of whole nodes (--exclusive) SLURM gives the GPUs to the job, but to no step that does not ask.
  [ -z "${SLURM_GPUS_ON_NODE:-}" ] || export SLURM_GPUS_PER_NODE=${SLURM_GPUS_PER_NODE:-$SLURM_GPUS_ON_NODE}
  local gpus=${SLURM_GPUS_PER_NODE:-}  # may be a100:4
  local tasks=${SLURM_NTASKS_PER_NODE:-${gpus##*:}}
  tasks=${tasks:-$TASKS_PER_NODE}
  local cpus=${SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE / tasks))}
  start "--ntasks-per-node=$tasks" "$((tasks * SLURM_JOB_NUM_NODES))" "$((cpus > 0 ? cpus : 1))" "$@"
}
on_all_tasks() { start '' "${SLURM_NTASKS:-1}" "${SLURM_CPUS_PER_TASK:-1}" "$@"; }
on_one_task() { start '' 1 "${SLURM_CPUS_PER_TASK:-1}" "$@"; }

start() {  # start PLACING NUMBER CPUS COMMAND...: becomes the launcher, so that signals reach it
  local placing=$1 number=$2 cpus=$3
  shift 3
  export OMP_NUM_THREADS=$cpus  # NumPy and oneDNN would take all cores of the node for each task
  case $LAUNCHER in
    # A task that dies ends the others, who would wait for it; but not at once, since all of them leave
    # with 75 when the work is saved, one a moment before the other.
    srun) exec srun --mpi="$MPI_PLUGIN" --ntasks="$number" ${placing:+"$placing"} \
      --cpus-per-task="$cpus" --kill-on-bad-exit=0 --wait=30 "$@" ;;
    # Open MPI binds each task to one core unless told not to; TensorFlow needs them all.
    mpirun) exec mpirun -n "$number" ${placing:+--map-by "ppr:${placing#*=}:node"} --bind-to none "$@" ;;
    *) die "LAUNCHER=$LAUNCHER in slurm/site.sh: must be srun or mpirun" ;;
  esac
}

# --- Network --------------------------------------------------------------------------------------
# Each line says why; without NETWORK_INTERFACE all of them find their way by themselves.
if [ -n "$NETWORK_INTERFACE" ]; then
  export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE       # NCCL takes the first interface, often a slow one
  export HOROVOD_GLOO_IFACE=$NETWORK_INTERFACE       # the same for Horovod's own rendezvous
  export OMPI_MCA_btl_tcp_if_include=$NETWORK_INTERFACE  # Open MPI tries docker0 too, and hangs
  export PRTE_MCA_prte_if_include=$NETWORK_INTERFACE # the same for mpirun's daemons (Open MPI 5)
fi
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}                # its faults, not its whole log
export UCX_WARN_UNUSED_ENV_VARS=n                    # one line a rank about variables of other tools
if [ "$(id -u)" = 0 ]; then                          # containers: Open MPI refuses root unless told twice
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# --- An attempt of a job ---------------------------------------------------------------------------
# SLURM sends USR1 to this shell ahead of the time limit (--signal=B:USR1@...), and it is passed on; at
# a preemption SLURM sends TERM to the tasks themselves. They save their work and leave with 75; then the
# job goes back to the queue, unless galmerhpc.cluster.attempts finds that it does not get on.
options=()  # of galmerhpc, which a script may set

live() {  # live STAGE HOW CONFIG [key=value ...] [--allow-change KEY ...]: galmerhpc STAGE on the tasks that HOW says
  local stage=$1 how=$2 status=0
  shift 2
  attempts() { python -m galmerhpc.cluster.attempts "$1" "$stage" "${@:2}"; }
  attempts begin "$@"
  "$how" galmerhpc "$stage" "${options[@]}" "$@" &
  child=$!
  [ $warned = no ] || kill -USR1 "$child"  # the signal came before the child
  while kill -0 "$child" 2> /dev/null; do wait "$child" || true; done
  wait "$child" || status=$?
  child=
  [ $status -eq 0 ] || { attempts end "$@" --status="$status" --warned="$warned"; exit; }
}

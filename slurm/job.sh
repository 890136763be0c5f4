# shellcheck shell=bash
# Sourced by every job script: the site's facts, the launcher, and what happens when a job must stop.
#
# SLURM runs a copy of the job script from its spool, so all paths are relative to where sbatch was
# called: the checkout.
set -euo pipefail
warned=no child=  # for live, below; set here because the signal may come at any time
trap 'warned=yes; [ -z "$child" ] || kill -USR1 "$child"' USR1
cd "$SLURM_SUBMIT_DIR"
die() { echo "slurm: $*" >&2; exit 2; }
[ -e slurm/job.sh ] || die "$SLURM_SUBMIT_DIR is not the checkout: call sbatch there"
[ -e slurm/site.sh ] || die "no slurm/site.sh in $SLURM_SUBMIT_DIR: copy slurm/site.example.sh and fill it in"
# Errors in it end the job; modules and conda read unset variables.
trap 'die "slurm/site.sh or its load_environment fails on $(hostname)"' EXIT
set +u
# shellcheck source=slurm/site.example.sh
source slurm/site.sh
load_environment
set -u
trap - EXIT
command -v galmerhpc > /dev/null || die "no galmerhpc on $(hostname) after load_environment of slurm/site.sh"

# --- Tasks and cores ------------------------------------------------------------------------------
# CPUs: sbatch's --cpus-per-task, else the node's cores divided by its tasks. Since SLURM 22.05 srun no
# longer inherits --cpus-per-task from sbatch, and binds each task to one core.
on_every_gpu() {  # one task each; TASKS_PER_NODE if SLURM knows no GPUs
  # With whole nodes (--exclusive) the job gets the GPUs, but a step only if it asks for them.
  [ "${SLURM_GPUS_ON_NODE:-0}" = 0 ] || export SLURM_GPUS_PER_NODE=${SLURM_GPUS_PER_NODE:-$SLURM_GPUS_ON_NODE}
  local gpus=${SLURM_GPUS_PER_NODE:-}  # may be a100:4
  local tasks=${SLURM_NTASKS_PER_NODE:-${gpus##*:}}
  tasks=${tasks:-$TASKS_PER_NODE}
  local cpus=${SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE / tasks))}
  start "--ntasks-per-node=$tasks" "$((tasks * SLURM_JOB_NUM_NODES))" "$((cpus > 0 ? cpus : 1))" "$@"
}
on_all_tasks() { start '' "${SLURM_NTASKS:-1}" "${SLURM_CPUS_PER_TASK:-1}" "$@"; }
on_one_task() { start '' 1 "${SLURM_CPUS_PER_TASK:-1}" "$@"; }

start() {  # start PLACING NUMBER CPUS COMMAND...: replaced by the launcher, so that signals reach it
  local placing=$1 number=$2 cpus=$3
  shift 3
  export OMP_NUM_THREADS=$cpus  # otherwise NumPy and oneDNN use all cores of the node in each task
  case $LAUNCHER in
    # A dead task ends the others, which would wait for it; but not at once, since all of them exit with
    # 75 when the work is saved, at slightly different times.
    srun) exec srun --mpi="$MPI_PLUGIN" --ntasks="$number" ${placing:+"$placing"} \
      --cpus-per-task="$cpus" --kill-on-bad-exit=0 --wait=30 "$@" ;;
    # By default Open MPI binds each task to one core; TensorFlow needs them all.
    mpirun) exec mpirun -n "$number" ${placing:+--map-by "ppr:${placing#*=}:node"} --bind-to none "$@" ;;
    *) die "LAUNCHER=$LAUNCHER in slurm/site.sh: must be srun or mpirun" ;;
  esac
}

# --- Network --------------------------------------------------------------------------------------
# Each line says why; without NETWORK_INTERFACE each library chooses by itself.
if [ -n "$NETWORK_INTERFACE" ]; then
  export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE       # NCCL uses the first interface, often a slow one
  export HOROVOD_GLOO_IFACE=$NETWORK_INTERFACE       # the same for Horovod's own rendezvous
  export OMPI_MCA_btl_tcp_if_include=$NETWORK_INTERFACE  # Open MPI tries docker0 too, and hangs
  export PRTE_MCA_prte_if_include=$NETWORK_INTERFACE # the same for mpirun's daemons (Open MPI 5)
fi
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}                # its warnings, not its whole log
export UCX_WARN_UNUSED_ENV_VARS=n                    # one line per rank about variables of other tools
if [ "$(id -u)" = 0 ]; then                          # containers: Open MPI refuses root unless told twice
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# --- An attempt of a job ---------------------------------------------------------------------------
# SLURM sends USR1 to this shell before the time limit (--signal=B:USR1@...), which passes it on; at a
# preemption with a GraceTime SLURM sends TERM to the tasks themselves. They save their work and exit with
# 75; then the job is requeued, unless galmerhpc.cluster.attempts finds that it makes no progress.
options=()  # for galmerhpc; a script may set them

live() {  # live STAGE HOW CONFIG [key=value ...] [--allow-change KEY ...]: galmerhpc STAGE, started by HOW
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

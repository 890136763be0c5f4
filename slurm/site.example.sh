# shellcheck shell=bash
# The facts of one cluster, in the only file that has them. Copy it to slurm/site.sh, fill it in, then
#
#   galmerhpc submit configs/demo.yaml             reads it; or by hand, in the checkout:
#   source slurm/site.sh && sbatch -p "$CPU_PARTITION" slurm/preprocess.sbatch configs/demo.yaml
#
# The jobs read it too. docs/cluster.md explains values for which one line is not enough.

# --- who pays: sbatch's defaults for every job; leave out what your site does not require
#export SBATCH_ACCOUNT=project123
#export SBATCH_QOS=normal
#export SBATCH_TIMELIMIT=12:00:00   # if the partition's limit is below the scripts' own --time
#export SBATCH_SIGNAL=B:USR1@60     # seconds; if that limit is only a few minutes

# --- partitions, as sinfo lists them
export CPU_PARTITION=              # preprocess, scrape from the mirror; empty: SLURM chooses
export GPU_PARTITION=              # train and evaluate; empty: CPU_PARTITION
export INTERNET_PARTITION=         # scrape from an address; empty: no node has internet
# More words for sbatch, where CPU and GPU nodes differ in constraint, account or QOS, as in
# "--constraint=gpu --account=project123_g":
export CPU_SBATCH_OPTIONS=         # scrape and preprocess
export GPU_SBATCH_OPTIONS=         # train and evaluate

# --- the nodes that train
export GPUS_PER_NODE=0             # GPUs of a node, as SLURM lists them (sinfo -o %G): one task each
export GPU_TYPE=                   # such as a100, if sbatch requires it; empty: any
export TASKS_PER_NODE=1            # tasks of a node without them, or its GPUs if SLURM does not list them
export CPUS_PER_TASK=4             # cores of a node divided by its tasks
export TRAIN_NODES=1               # nodes of a training, unless submit --nodes is given

# --- the other stages
export PREPROCESS_TASKS=4          # MPI tasks, on however many nodes they fit
# Each draws the mirror's images on two cores, which takes about 40 minutes for 263,536 views
# (docs/performance.md): eight at once for such a catalogue. From an address they are no faster.
export SCRAPE_TASKS=1              # array tasks; each has its share of the catalogue and the rate
export SCRAPE_AT_ONCE=1            # how many of them run at once

# --- how tasks are started
export LAUNCHER=srun               # srun, or mpirun (Open MPI's)
export MPI_PLUGIN=pmix             # srun's; `srun --mpi=list` lists them
export NETWORK_INTERFACE=          # the fast network's, as `ip link` lists it (ib0, hsn0); empty: any

# --- how often a job is requeued
export CONTINUATION=requeue        # requeue, or array: `submit` chains CONTINUATION_TASKS array tasks
export CONTINUATION_TASKS=10       # only for array
export MAX_ATTEMPTS=100            # most attempts of a job
# no: a job whose rank fails (the watchdog, an error of NCCL or MPI, out of memory) has FAILED, and the
# jobs after it are cancelled. yes, better for long trainings: it resumes, until two attempts without
# progress.
export REQUEUE_FAILED=no

# --- where things go
export RUNS_FOLDER=                # on the parallel file system; `runs` becomes a link to it
export MAIL_USER=                  # gets mail at the end or failure of each job

# --- the environment with galmerhpc; loaded in every job and, as a test, by submit
load_environment() {
  # module load openmpi cuda
  # shellcheck source=/dev/null
  source .venv/bin/activate
}

# --- what must exist before sbatch: it writes no log into a missing folder, and does not say so
mkdir -p logs
if [ -n "$RUNS_FOLDER" ]; then
  mkdir -p "$RUNS_FOLDER"  # again where it was purged
  [ -e runs ] || [ -L runs ] || ln -sn "$RUNS_FOLDER" runs
  [ runs -ef "$RUNS_FOLDER" ] ||
    echo "slurm/site.sh: RUNS_FOLDER=$RUNS_FOLDER has no effect: runs exists and is another folder" >&2
fi

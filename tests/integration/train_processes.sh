#!/usr/bin/env bash
# usage: train_processes.sh <mpirun> <bitnet> <empty folder>: trains by two processes of which one is killed with SIGKILL,
# goes on by two, kills the other, goes on by two of which one is interrupted, damages the newest checkpoint, and ends by
# four; fails unless each death ends the run with a message and mpirun's status, the four go on from an older checkpoint, and
# the model is bit for bit that of a run by one process that was never stopped. Another run ends by Ctrl-C to mpirun, which
# must write a checkpoint that one process goes on from. Processes whose teachers differ are refused.
set -euo pipefail
mpirun=$1
bitnet=$2
rm -rf "$3"
mkdir -p "$3"
cd "$3"
export BITNET_THREADS=1
for i in $(seq 300); do echo "The cat sat on mat $((i % 7)) and looked at dog $((i % 11))."; done >text.txt
for run in whole killed; do
  cat >$run.yaml <<YAML
model: {vocab_size: 300, hidden_size: 256, intermediate_size: 256, layers: 2, heads: 4, kv_heads: 2, context: 64}
data: {train: text.txt, validation: text.txt, validation_tokens: 128}
training: {steps: 120, warmup: 3, learning_rate: 3.0e-3, length: 32, batch: 4, micro_batch: 1, gradient_parts: 4}
output: {directory: $run, log_every: 1, evaluate_every: 50, checkpoint_minutes: 0, keep_checkpoints: 2,
         sample_every: 60, sample_prompt: The cat, sample_tokens: 4}
YAML
done
launch=("$mpirun" --oversubscribe --allow-run-as-root --bind-to none -n)
by() { "${launch[@]}" "$1" "$bitnet" train "${@:2}"; }

# steps <run>: how many its log has.
steps() {
  local n
  n=$(grep -c '"type":"train"' "$1/log.jsonl" 2>/dev/null) || true
  echo "${n:-0}"
}

# start <run> [--resume]: two processes in the background; returns some steps later. pid is mpirun's.
start() {
  local before
  before=$(steps "$1")
  "${launch[@]}" 2 "$bitnet" train "$1.yaml" "${@:2}" >"$1.out" 2>&1 &
  pid=$!
  while [ "$(steps "$1")" -lt $((before + 8)) ]; do
    kill -0 $pid 2>/dev/null || { echo "ended before it was stopped:"; cat "$1.out"; return 1; }
    sleep 0.02
  done
}

# signal_rank <signal> <rank>: to that process of mpirun's.
signal_rank() {
  local child
  for child in /proc/[0-9]*; do
    if grep -qsE "^PPid:\s$pid$" "$child/status" && grep -qsz "^OMPI_COMM_WORLD_RANK=$2$" "$child/environ"; then
      kill "-$1" "${child#/proc/}"
    fi
  done
}

# ended <run> <status> <regular expression>: waits for mpirun, which must return this and have written that.
ended() {
  local status=0
  wait $pid || status=$?
  if [ $status -ne "$2" ] || ! grep -q "$3" "$1.out"; then
    echo "status $status, and no '$3' in:"
    cat "$1.out"
    return 1
  fi
}

# kill_rank <rank> [--resume]: two processes, of which this one is killed some steps later.
kill_rank() {
  start killed "${@:2}"
  signal_rank KILL "$1"
  ended killed 137 "process rank $1 .*signal 9"
  [ "$(steps killed)" -lt 120 ] || { echo "there was nothing left to kill"; return 1; }
}

"$bitnet" train whole.yaml >whole.out 2>&1
kill_rank 1
kill_rank 0 --resume
start killed --resume
signal_rank INT 1
ended killed 130 "stopped; --resume continues"
printf damaged >killed/checkpoint.safetensors
by 4 killed.yaml --resume >killed.out 2>&1 || { cat killed.out; exit 1; }
grep -q "skipped 'killed/checkpoint.safetensors'" killed.out
grep -q 'step 120 writes: "The cat' killed.out
cmp whole/model.gguf killed/model.gguf

# What the processes cannot do is said by one of them, and the others end.
if by 3 killed.yaml --resume >refused.out 2>&1; then echo "3 processes took 4 parts"; exit 1; fi
grep -q 'training.gradient_parts is 4, which 3 processes cannot share' refused.out
# A teacher that is another one on another machine, here in another folder: refused before the first step.
mkdir here there
cp whole/model.gguf here/teacher.gguf
sed -e 's/output: {directory: whole/output: {directory: other/; s/steps: 120/steps: 5/; s/training: {/training: {seed: 5, /' \
  -e '/sample_every/d; s/keep_checkpoints: 2,/keep_checkpoints: 2}/' whole.yaml >other.yaml
"$bitnet" train other.yaml >other.out 2>&1 || { cat other.out; exit 1; }
cp other/model.gguf there/teacher.gguf
vocabulary=$(grep -oE '"vocab_size": [0-9]+' whole/model/config.json | grep -oE '[0-9]+')
sed -e "s|directory: other|directory: $PWD/taught|; s|vocab_size: 300|vocab_size: $vocabulary|; s|text.txt|$PWD/text.txt|g" \
  -e 's/^data:/distillation: {teacher: teacher.gguf}\ndata:/' other.yaml >taught.yaml
taught() { "${launch[@]}" 1 -wdir "$PWD/$1" "$bitnet" train "$PWD/taught.yaml" : -n 1 -wdir "$PWD/$2" "$bitnet" train "$PWD/taught.yaml"; }
if taught here there >taught.out 2>&1; then echo "two teachers taught one model"; exit 1; fi
grep -q "process 1 has another run than process 0: teacher's base weights is of hash" taught.out || { cat taught.out; exit 1; }
[ ! -e taught/checkpoint.safetensors ]
cp here/teacher.gguf there/teacher.gguf
taught here there >taught.out 2>&1 || { cat taught.out; exit 1; }
[ -e taught/model.gguf ]
# Ctrl-C: mpirun asks its processes to end so many seconds later, and kills them again as many later. No checkpoint but that
# of the end.
sed -e 's/whole/stopped/; s/steps: 120/steps: 1000000/; s/checkpoint_minutes: .*}/checkpoint_minutes: 1000}/' whole.yaml >stopped.yaml
OMPI_MCA_odls_base_sigkill_timeout=4 start stopped
kill -INT $pid
ended stopped 1 "stopped; --resume continues"
last=$(steps stopped)
sed -i "s/steps: 1000000/steps: $((last + 3))/" stopped.yaml
"$bitnet" train stopped.yaml --resume >stopped.out 2>&1 || { cat stopped.out; exit 1; }
grep -q "resumed at step $last" stopped.out
echo "killed twice, interrupted twice, and the same bits"

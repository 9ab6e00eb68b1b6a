#!/usr/bin/env bash
# usage: train_processes.sh <mpirun> <bitnet> <empty folder>: trains by two processes of which one is killed with SIGKILL,
# goes on by two, kills the other, damages the newest checkpoint, and ends by four; fails unless each death ends the run with
# a message, the four go on from an older checkpoint, and the model is bit for bit that of a run by one process that was never
# stopped.
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

# steps: how many the log of the killed run has.
steps() {
  local n
  n=$(grep -c '"type":"train"' killed/log.jsonl 2>/dev/null) || true
  echo "${n:-0}"
}

# kill_rank <rank> [--resume]: two processes, of which this one is killed some steps later.
kill_rank() {
  local before pid status=0 child
  before=$(steps)
  "${launch[@]}" 2 "$bitnet" train killed.yaml "${@:2}" >killed.out 2>&1 &
  pid=$!
  while [ "$(steps)" -lt $((before + 8)) ]; do
    kill -0 $pid 2>/dev/null || { echo "ended before it was killed:"; cat killed.out; return 1; }
    sleep 0.02
  done
  for child in /proc/[0-9]*; do
    if grep -qsE "^PPid:\s$pid$" "$child/status" && grep -qsz "^OMPI_COMM_WORLD_RANK=$1$" "$child/environ"; then
      kill -KILL "${child#/proc/}"
    fi
  done
  wait $pid || status=$?
  [ $status -ne 0 ] || { echo "process $1 was killed, and the run ended well"; return 1; }
  grep -q "process rank $1 .*signal 9" killed.out || { echo "no word of process $1:"; cat killed.out; return 1; }
  [ "$(steps)" -lt 120 ] || { echo "there was nothing left to kill"; return 1; }
}

"$bitnet" train whole.yaml >whole.out 2>&1
kill_rank 1
kill_rank 0 --resume
printf damaged >killed/checkpoint.safetensors
by 4 killed.yaml --resume >killed.out 2>&1 || { cat killed.out; exit 1; }
grep -q "skipped 'killed/checkpoint.safetensors'" killed.out
grep -q 'step 120 writes: "The cat' killed.out
cmp whole/model.gguf killed/model.gguf

# What the processes cannot do is said by one of them, and the others end.
if by 3 killed.yaml --resume >refused.out 2>&1; then echo "3 processes took 4 parts"; exit 1; fi
grep -q 'training.gradient_parts is 4, which 3 processes cannot share' refused.out
echo "killed twice, and the same bits"

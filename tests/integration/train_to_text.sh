#!/usr/bin/env bash
# usage: train_to_text.sh <bitnet> <empty folder>: trains a tiny model, converts it to every format and back through the
# executable alone, and fails unless the formats that keep the weights exactly write the same text and measure the same
# perplexity, and those that store scales as f16 run.
set -euo pipefail
bitnet=$1
rm -rf "$2"
mkdir -p "$2"
cd "$2"
for i in $(seq 300); do echo "The cat sat on mat $((i % 7)) and looked at the dog."; done >text.txt
cat >train.yaml <<'YAML'
model: {vocab_size: 300, hidden_size: 256, intermediate_size: 256, layers: 2, heads: 4, kv_heads: 2, context: 64}
data: {train: text.txt, validation: text.txt}
training: {steps: 30, warmup: 3, learning_rate: 3.0e-3, length: 32, batch: 2, micro_batch: 1}
output: {directory: out, log_every: 10, evaluate_every: 30}
YAML
"$bitnet" train train.yaml >train.out
"$bitnet" convert out/model.gguf hf --type hf
"$bitnet" convert out/model.gguf divided --type hf --scale-form divide
"$bitnet" convert hf back.gguf --type i2_s
"$bitnet" convert out/model.gguf tq1.gguf --type tq1_0
"$bitnet" convert tq1.gguf tq2.gguf --type tq2_0

say() { "$bitnet" run -m "$1" -p "The cat" -n 16 --temp 0 2>/dev/null; }
measure() { "$bitnet" perplexity -m "$1" -f text.txt -c 64 --chunks 4 2>/dev/null | grep -oE 'perplexity[ :=]*[0-9.]+'; }
text=$(say out/model.gguf)
perplexity=$(measure out/model.gguf)
echo "text '$text', $perplexity"
[ -n "$text" ]
for model in hf divided back.gguf; do
  [ "$(say $model)" = "$text" ] || { echo "$model writes '$(say $model)'"; exit 1; }
  [ "$(measure $model)" = "$perplexity" ] || { echo "$model measures $(measure $model)"; exit 1; }
done
for model in tq1.gguf tq2.gguf; do
  [ -n "$(say $model)" ]
  [ -n "$(measure $model)" ]
done
[ "$(say tq1.gguf)" = "$(say tq2.gguf)" ]

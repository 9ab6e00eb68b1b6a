#!/usr/bin/env bash
# usage: load_memory.sh BITNET WORK_FOLDER
# Peak memory of loading a model, file pages in memory counted: at most 1.15 times its file (which is larger than the
# prepared weights here) and 64 MB, with linears in each ternary layout or ternarised from BF16, and 16-bit tables as
# they are and as int8. Not here: linears that stay dense, Q8_0 and Q6_K tables (stored they become f32, more than their
# file). The cache is a few tokens long.
set -euo pipefail
bitnet=$1 work=$2
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT

# 15 M weights a layer, two untied tables of 65 MB in 16 bits: a copy of either kind of matrix, or a file that stays in
# memory, is beyond the bound.
cat > "$work/config.json" <<'JSON'
{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 1024,
  "intermediate_size": 4096, "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4,
  "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16"
}
JSON

failed=0
# check NAME LAYERS TYPE OPTIONS…: writes a random model of TYPE and runs it with OPTIONS.
check() {
  local name=$1 layers=$2 type=$3 model=$work/model
  shift 3
  [ "$type" = hf ] || model+=.gguf
  "$bitnet" synth --config "$work/config.json" --layers "$layers" --type "$type" -o "$model" 2> /dev/null
  local bytes line
  bytes=$(du -sb "$model" | cut -f1)
  "$bitnet" run -m "$model" -p Hello -n 1 --temp 0 "$@" > /dev/null 2> "$work/log" || { cat "$work/log"; exit 1; }
  line=$(grep 'peak memory' "$work/log")
  awk -v name="$name" -v bytes="$bytes" '{
    unit = $NF == "GiB" ? 1024 : 1
    if ($NF != "MiB" && $NF != "GiB") { print name ": no size in: " $0; exit 1 }
    peak = $(NF - 1) * unit * 1048576
    bound = 1.15 * bytes + 64e6
    printf "%s: file %.0f MB, peak %.0f MB, bound %.0f MB\n", name, bytes / 1e6, peak / 1e6, bound / 1e6
    exit !(peak > 0 && peak <= bound)
  }' <<< "$line" || failed=1
  rm -rf "$model"
}

check "I2_S" 20 i2_s
check "I2_S, tables as stored" 20 i2_s --head-type stored
check "TQ2_0" 20 tq2_0
check "TQ1_0" 20 tq1_0 --head-type stored
check "Hugging Face" 20 hf
check "BF16, ternarised at load" 5 bf16 --quantize absmean
exit "$failed"

#!/usr/bin/env bash
# The paper, from prepared data to its tables: pre-training, each fine-tuning, each evaluation, and one page of results.
#
#   launch/paper.sh DATA WEIGHTS RUNS [--dry_run]
#
# DATA holds what `prepare` made (lp_music_caps/msd, music_caps, music_qa, music_instruct/short and /long), WEIGHTS the
# towers as weights.md says (mert/, vicuna/, and roberta-large/ for BERTScore, nltk_data/ for METEOR, if there are any),
# RUNS gets the runs, RUNS/evaluation and, at the end, RUNS/paper.md. Stopped at any moment, the same command resumes; a
# stage that is done is not done again. Each stage is said with the time that it takes on one H100, about.
# TRAIN_FLAGS and EVALUATE_FLAGS are added to every training and evaluation, as TRAIN_FLAGS="--config.mesh.fsdp=4".
set -euo pipefail

if [[ $# -lt 3 || $# -gt 4 || ${4---dry_run} != --dry_run ]]; then
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
data=$1 weights=$2 runs=$3 dry_run=${4-}
python=${PYTHON:-python}
read -ra train_flags <<< "${TRAIN_FLAGS-}"
read -ra evaluate_flags <<< "${EVALUATE_FLAGS-}"
[[ ! -d $weights/roberta-large ]] || evaluate_flags+=(--bert_score "$weights/roberta-large")
[[ ! -d $weights/nltk_data ]] || evaluate_flags+=(--nltk_data "$weights/nltk_data")

# stage NAME TIME COMMAND …: runs a command, unless the very same one is done.
stage() {
  local name=$1 time=$2 line
  shift 2
  # Whichever Python runs it.
  line=$(printf '%q ' "${@:2}")
  echo "== $name (about $time)" >&2
  if [[ $dry_run ]]; then
    echo "$1 $line"
  elif [[ -f $runs/done/$name && $(< "$runs/done/$name") == "$line" ]]; then
    echo "   done before" >&2
  else
    "$@"
    mkdir -p "$runs/done"
    echo "$line" > "$runs/done/$name"
  fi
}

# train NAME TIME CONFIG [FLAG …]
train() {
  local name=$1 time=$2 config=$3
  shift 3
  stage "$name" "$time" "$python" -m mlingo_jax.train "--config=$config" "--config.workdir=$runs/$name" \
    "--config.data.data_dir=$data" "--config.mert.path=$weights/mert" "--config.llm.path=$weights/vicuna" \
    "$@" "${train_flags[@]}"
}

# evaluate NAME TIME RUN DATASET:SPLIT TRAINING: with the paper's way to draw.
evaluate() {
  stage "evaluate_$1" "$2" "$python" -m mlingo_jax.evaluate "$runs/$3" --data "$4" --training "$5" \
    --data_dir "$data" --like qa --output "$runs/evaluation/$1" "${evaluate_flags[@]}"
}

start=--config.adapter.start=$runs/pretrain
train pretrain "2 h, half of it for encoding MSD's clips" pretrain
train finetune_musiccaps "10 min" finetune_musiccaps "$start"
train finetune_musicqa "40 min" finetune_musicqa "$start"
train finetune_mi_short "20 min" finetune_mi_short "$start"
train finetune_mi_long "25 min" finetune_mi_long "$start"
evaluate musiccaps "20 min" finetune_musiccaps music_caps:eval music_caps:train
evaluate musicqa "20 min" finetune_musicqa music_qa:eval music_qa:finetune
evaluate mi_short "40 min" finetune_mi_short music_instruct/short:test music_instruct/short:train
evaluate mi_long "90 min" finetune_mi_long music_instruct/long:test music_instruct/long:train
stage page "1 s" "$python" -m mlingo_jax.evaluate paper "$runs"

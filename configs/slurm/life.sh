# Read by the job scripts beside it; nothing here needs an edit. A life of a job goes from its start to the end of the
# run or of the time; the next life goes on from the checkpoint that this one left.
#
#   survey "$@"       sets nodes, processes and cpus (of each node), host, port, run_dir, logs, again
#   live COMMAND ...  runs the training, asks it to stop when the time is nearly up, decides on another life, and exits

set -uo pipefail
time_is_up=no
trap 'time_is_up=yes; ask_to_stop' USR1 # from --signal; without a trap it would end this script

cd "$SLURM_SUBMIT_DIR" || exit
# In an array, the SLURM_JOB_ID of one task is the name of the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
logs=logs/$job
mkdir -p "$logs" || exit
again=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    again=(--overwrite_output_dir false --resume_from_checkpoint auto) # whatever the first life was asked to do
else
    rm -f "$logs/lives.txt"
fi

say() {
    echo "$(date '+%F %T') job $job: $*"
}

fail() {
    echo "error: $*" >&2
    exit 2
}

survey() {
    local found
    nodes=$SLURM_NNODES
    host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    port=$((20000 + SLURM_JOB_ID % 20000))
    found=$(srun --ntasks="$nodes" --ntasks-per-node=1 \
        bash -c 'echo "$SLURMD_NODENAME ${SLURM_GPUS_ON_NODE:-0} $SLURM_CPUS_ON_NODE"' | sort) ||
        fail "not all of the nodes $SLURM_JOB_NODELIST answer"
    processes=$(cut -d ' ' -f 2 <<<"$found" | sort -u)
    cpus=$(cut -d ' ' -f 3 <<<"$found" | sort -n | head -n 1)
    if [ "$(wc -l <<<"$processes")" -gt 1 ]; then
        found=$(cut -d ' ' -f 1,2 <<<"$found" | paste -sd , | sed 's/,/, /g')
        fail "the nodes have different numbers of GPUs ($found); ask for --gpus-per-node=N, or leave a node out" \
            "with --exclude=NODE"
    fi
    if [ "$processes" = 0 ]; then
        say "no GPUs were asked for (--gpus-per-node), so it trains on CPUs"
        export ACCELERATE_USE_CPU=true DS_ACCELERATOR=cpu
        processes=1
    fi
    processes=${PROCESSES_PER_NODE:-$processes}
    # A mistake in the arguments is told here, before anything is started.
    run_dir=$(WORLD_SIZE=$((nodes * processes)) python -m stylegen.job directory "$@" "${again[@]}") || exit
    say "$run_dir: $nodes x $processes processes on $SLURM_JOB_NODELIST, which meet at $host port $port; logs in $logs"
}

live() {
    local before training code decision is_requeued
    before=$(python -m stylegen.job step "$run_dir") || exit
    "$@" &
    training=$!
    while kill -0 $training 2>/dev/null; do
        if [ $time_is_up = yes ]; then
            ask_to_stop # again: a training that is just starting clears the file away
            sleep 2
        else
            wait $training # until its end, or the signal
        fi
    done
    wait $training
    code=$?
    rm -f "$run_dir/STOP"
    [ $code = 0 ] || show_errors
    decision=$(python -m stylegen.job verdict "$run_dir" "$logs/lives.txt" "$before" $code $time_is_up)
    is_requeued=$?
    say "$decision"
    if [ $is_requeued = 0 ]; then
        scontrol requeue "$job" || fail "SLURM refuses to queue job $job again; submit it again to go on"
    fi
    exit $code
}

ask_to_stop() {
    local file=${run_dir:-}/STOP
    [ -d "${run_dir:-}" ] && [ ! -e "$file" ] || return
    # Renamed, because the training must not find the file while it is still empty.
    echo requeue >"$file.tmp" && mv "$file.tmp" "$file"
}

show_errors() {
    local errors ends
    errors=$(grep -E '(^|:)error: |failed \(exitcode: -' "$logs"/*.log)
    # Those who lost contact come first, and last the one that they lost.
    [ -z "$errors" ] || { grep 'lost contact' <<<"$errors"; grep -v 'lost contact' <<<"$errors"; } | tail -n 5
    ends=$(tail -q -n 100 "$logs"/*.log)
    if grep -qE 'waiting for clients|socket has timed out|failed to listen' <<<"$ends"; then
        echo "error: no rendezvous at $host port $port: check that every node started (an empty log in $logs is of" \
            "one that did not), and that nothing blocks or uses that port"
    fi
}

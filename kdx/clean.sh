#!/usr/bin/env bash
# Gives back what finished or dead runs hold: temporary files, free locks, shared memory, on wish old checkpoints.
# Says what it does and how much that frees. What a living run uses is left alone.
set -euo pipefail

usage() {
    cat <<'TEXT'
clean.sh [FOLDER] [--dry-run] [--checkpoints] [--logits] [--cache] [--system]
  FOLDER         a stage's, a run's or the whole output folder (default: where this script lies, else outputs)
  --dry-run      only say what would be done
  --checkpoints  also remove the kept snapshots (epoch_*.pth) and files that were set aside (*.damaged)
  --logits       also remove what kd.cache_logits has kept
  --cache        also remove what dataset.cache=disk has decoded (dataset.cache_dir, if it lies elsewhere, is a FOLDER)
  --system       also drop the system's page cache (asks first, needs root)
TEXT
}

folder="" dry=0 checkpoints=0 logits=0 cache=0 system=0 freed=0 count=0 locks=0
for argument in "$@"; do
    case "$argument" in
        --dry-run) dry=1 ;;
        --checkpoints) checkpoints=1 ;;
        --logits) logits=1 ;;
        --cache) cache=1 ;;
        --system) system=1 ;;
        -h | --help) usage; exit 0 ;;
        -*) echo "error: unknown option $argument" >&2; usage >&2; exit 2 ;;
        *) folder="$argument" ;;
    esac
done
if [ -z "$folder" ]; then
    folder="$(cd "$(dirname "$0")" && pwd)"
    [ -d "$folder/checkpoints" ] || folder=outputs
fi
[ -d "$folder" ] || { echo "error: $folder: no such folder" >&2; exit 2; }

show_gpus() {
    command -v nvidia-smi >/dev/null || { echo "GPU: no nvidia-smi here"; return; }
    echo "GPU memory:"
    nvidia-smi --query-gpu=index,name,memory.used,memory.total --format=csv,noheader || true
    echo "held by:"
    nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv,noheader || true
}

held() { # whether a living process holds the lock file
    [ -e "$1" ] && ! flock --nonblock "$1" true
}

in_use() { # whether the run that a file belongs to is alive
    local place lock
    place="$(cd "$(dirname "$1")" && pwd)" # absolute: the run's own lock may lie above FOLDER
    for _ in 1 2 3 4; do
        for lock in "$place"/.lock "$place"/*.lock; do
            if held "$lock"; then return 0; fi
        done
        place="$(dirname "$place")"
    done
    return 1
}

remove() {
    local size
    size=$(stat -c %s "$1")
    freed=$((freed + size))
    count=$((count + 1))
    case "$1" in
        *.lock) locks=$((locks + 1)) ;; # every stage leaves one: a line each would hide the rest
        *) echo "$([ $dry = 1 ] && echo "would remove" || echo "removed") $1 ($size bytes)" ;;
    esac
    [ $dry = 1 ] && return
    case "$1" in
        *.lock) flock --nonblock "$1" rm -f "$1" || true ;; # in one go: who takes it a moment later makes a new one
        *) rm -f "$1" ;;
    esac
}

show_gpus

while IFS= read -r -d '' file; do
    if in_use "$file"; then echo "left alone, its run is alive: $file"; else remove "$file"; fi
done < <(find "$folder" -name '.tmp-kdx-*' -type f -print0)

if [ $checkpoints = 1 ]; then
    while IFS= read -r -d '' file; do
        if in_use "$file"; then echo "left alone, its run is alive: $file"; else remove "$file"; fi
    done < <(find "$folder" -type f -regextype posix-extended -regex \
        '.*/checkpoints/(epoch_[0-9]+\.pth(\.sha256)?|(latest|epoch_[0-9]+|best_[a-z0-9_]+_-?[0-9.]+)\.pth(\.sha256)?\.damaged(-[0-9]+)?)' \
        -print0)
fi

if [ $logits = 1 ]; then
    while IFS= read -r -d '' file; do remove "$file"; done \
        < <(find "$folder" -regex '.*/index/logits/[0-9a-f]+/[^/]*\.npy\(\.sha256\)?' -type f -print0)
fi

decoded='[0-9a-f]{32}_[0-9]+x[0-9]+\.u8'
if [ $cache = 1 ]; then # a run that has such a file mapped keeps its pixels until it ends
    while IFS= read -r -d '' file; do
        if held "${file%.u8*}.u8.lock"; then
            echo "left alone, a living run writes it: $file"
        else
            remove "$file"
        fi
    done < <(find "$folder" -type f -regextype posix-extended \
        -regex ".*/$decoded(\.part)?(\.blake2b)?(\.damaged(-[0-9]+)?)?" -print0)
fi

while IFS= read -r -d '' lock; do
    if held "$lock"; then
        echo "left alone, held by a living run: $lock"
    else
        remove "$lock"
    fi
done < <(find "$folder" -type f -empty -regextype posix-extended -regex ".*/(\.lock|index/[0-9a-f]{16}\.lock|mlflow\.lock|$decoded\.lock)" -print0)

[ $locks = 0 ] || echo "$([ $dry = 1 ] && echo "would remove" || echo "removed") $locks free locks"

# torch names its segments torch_<process>_<number>_<number>: ours are those whose process is gone; young ones stay,
# since a process in another container may not be seen from here
for segment in /dev/shm/torch_*; do
    [ -O "$segment" ] && [ -n "$(find "$segment" -mmin +60)" ] || continue
    process="$(basename "$segment" | cut -d_ -f2)"
    case "$process" in '' | *[!0-9]*) continue ;; esac
    kill -0 "$process" 2>/dev/null || remove "$segment"
done

if [ $system = 1 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "--system: dropping the page cache needs root" >&2
    elif [ $dry = 1 ]; then
        echo "would drop the page cache: $(awk '/^Cached/ {print $2 " kB"}' /proc/meminfo)"
    else
        printf 'drop the page cache of the whole machine? [y/N] '
        read -r answer || answer=n
        if [ "$answer" = y ]; then
            sync
            echo 1 >/proc/sys/vm/drop_caches && echo "page cache dropped"
        fi
    fi
fi
echo "$count files, $freed bytes $([ $dry = 1 ] && echo "would be freed" || echo "freed")"

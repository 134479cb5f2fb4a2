#!/usr/bin/env bash
# Back up a folder into a dated archive, check the archive, and keep only the newest ones.
#
# usage: rotate-backups.sh [-k COUNT] [-n] SOURCE TARGET
#   -k COUNT  how many archives to keep (default 7)
#   -n        only say what would be done
set -euo pipefail

keep=7
dry_run=false

usage() {
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

log() {
    printf '%s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*"
}

run() {
    if "$dry_run"; then
        log "would run: $*"
    else
        "$@"
    fi
}

while getopts ':k:n' option; do
    case "$option" in
        k) keep=$OPTARG ;;
        n) dry_run=true ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))

[[ $# -eq 2 ]] || usage
[[ $keep =~ ^[1-9][0-9]*$ ]] || { log "not a count: $keep"; usage; }
source_dir=${1%/}
target_dir=${2%/}
[[ -d $source_dir ]] || { log "no such folder: $source_dir"; exit 1; }
run mkdir -p "$target_dir"

name=$(basename "$source_dir")
archive="$target_dir/$name-$(date '+%Y%m%d-%H%M%S').tar.gz"
partial="$archive.partial"
trap 'rm -f "$partial"' EXIT

log "packing $source_dir"
run tar -czf "$partial" -C "$(dirname "$source_dir")" "$name"
if ! run tar -tzf "$partial" > /dev/null; then
    log "the archive cannot be read back"
    exit 1
fi
run mv "$partial" "$archive"

# The date in the name sorts like the date itself, so the oldest archives come first.
shopt -s nullglob
archives=("$target_dir/$name"-*.tar.gz)
surplus=$((${#archives[@]} - keep))
for ((i = 0; i < surplus; i++)); do
    log "removing ${archives[i]}"
    run rm -f -- "${archives[i]}"
done
log "done: $archive"

# shellcheck shell=bash
# What the tests of backends share: ten jobs, their verdicts, and a job that is under way. Needs root and lib.sh.

vmm=target/dist/vmm-local
work=$(mktemp -d /tmp/backends.XXXXXX)
trap 'rm -rf "$work"' EXIT
export XDG_STATE_HOME=$work/state XDG_RUNTIME_DIR=$work
passed=0 failed=0
# check WHAT COMMAND...: counts it, and says what is wrong
check() {
    if "${@:2}"; then passed=$((passed + 1)) && echo "ok      $1"; else failed=$((failed + 1)) && echo "FAILED  $1"; fi
}

# job NAME SCRIPT [MORE]: a job of the batch
job() {
    mkdir -p "$work/jobs/$1"
    jq -n --arg script "$2" --argjson more "${3:-{\}}" '{command: ["sh", "-c", $script]} + $more' >"$work/jobs/$1/job.json"
}
# shellcheck disable=SC2016 # the jobs' shells
{
    job score 'echo "{\"scores\": {\"p1\": 10}}"'
    job exits 'exit 3'
    job dies 'kill -11 $$'
    job real-time-signal 'kill -40 $$'
    job wall 'sleep 100' '{"wall": "1s"}'
    job cpu 'while :; do :; done' '{"cpu": "300ms", "wall": "30s"}'
    job output 'yes' '{"output": "64K", "on_output": "kill", "wall": "30s"}'
    job daemon '(sleep 100 &) ; echo done'
    job results 'mkdir d; echo one >d/a; ln -s a d/b; cat input >c' '{"out": ["**/*:."]}'
    job not-there './nothing'
}
echo given >"$work/jobs/results/input"

# verdicts NAME BACKEND-OPTION...: of the batch, and what came out of it, in $work/NAME
verdicts() {
    "$vmm" batch "${@:2}" --machines 2 --jsonl "$work/$1.jsonl" --out "$work/$1.out" "$work/jobs" >"$work/$1.log" 2>&1 || true
    # what a limit has killed may have been seen to die of it, or not
    jq -Sc '[.job, .report.cause, .report.exit_code, (.report | select(.cause == "signaled").signal) // null, .scores,
        .report.restore.state]' "$work/$1.jsonl" | sort >"$work/$1"
    (cd "$work/$1.out/results" && find . -type f ! -name report.json -exec cksum {} + | sort -k 3) >>"$work/$1"
}
same() { diff "$work/process" "$work/$1"; }

# one for each layer; CORPUS=all takes all of them
attacks=(mem-touch mem-tmpfs-fill oom-kills-driver mlock-bomb fork-bomb pty-exhaust daemon-double-fork proc-cmdline
    setuid-binaries userns network-reach kernel-and-host-info-hostname channel-cgroup-path forge-frames-elsewhere)
[ "${CORPUS:-}" != all ] || attacks=()
# stops ENVIRONMENT BACKEND-OPTION...: the attacks, but for those that tests/conformance.expected has for it
stops() {
    "$vmm" conformance --json "${@:2}" "${attacks[@]}" >"$work/corpus" 2>"$work/said" || true
    jq -r '.attacks[] | select(.held or .open | not) | .attack' "$work/corpus" | sort >"$work/broke"
    jq -r '.attacks[].attack' "$work/corpus" | sort >"$work/tried"
    expected_of "$1" "$work/broke" | join - "$work/tried" >"$work/expected"
    [ "$(wc -l <"$work/tried")" -ge "$(("${#attacks[@]}" > 0 ? "${#attacks[@]}" : 100))" ] || { cat "$work/said" && return 1; }
    diff "$work/expected" "$work/broke"
}

none() { [ -z "$("$@" || true)" ]; }
# within SECONDS COMMAND...: it succeeds in that time
within() {
    local end=$((SECONDS + $1))
    until "${@:2}"; do [ "$SECONDS" -lt "$end" ] || return 1; sleep 0.2; done
}

truncate -s 1500M "$work/big"
# How much vmm-local has moved, beyond what an autodriver takes to go ahead.
has_moved() { [ "$(sed -n "s/^$1: //p" "/proc/$running/io" 2>/dev/null || echo 0)" -gt 20000000 ]; }
has_begun() { grep -q begun "$work/begun"; }
# at copy-in|run|copy-out BACKEND-OPTION...: starts a job that would take long there, and waits until it is there
at() {
    local phase=$1 options there
    case $phase in
        copy-in) options=(--in "$work/big" -- true) there=(has_moved wchar) ;;
        run) options=(--wall 300s -- sh -c 'echo begun; sleep 200') there=(has_begun) ;;
        copy-out) options=(--out "big:$work/fetched" -- truncate -s 1500M big) there=(has_moved rchar) ;;
    esac
    : >"$work/begun"
    "$vmm" run "${@:2}" --fsize 2G --disk 2G "${options[@]}" >"$work/begun" 2>"$work/said" &
    running=$!
    within 60 "${there[@]}"
}
ends_with() {
    local code=0
    within 60 not_running || { kill -9 "$running" && return 1; }
    wait "$running" || code=$?
    [ "$code" = "$1" ] || { echo "exit status $code, not $1"; cat "$work/said"; return 1; }
}
kill_host() {
    kill -9 "$running"
    wait "$running" 2>/dev/null || true
}
not_running() { ! kill -0 "$running" 2>/dev/null; }
